"""torch modules → graphs → a bundle, proven on the way: torch and onnxruntime must agree before it is saved."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from app.bundle import SCHEMA_VERSION, Bundle, golden, load, save
from app.bundle.manifest import Graph, Graphs, InputSpec
from app.bundle.manifest import Tensor as TensorSpec
from app.bundle.session import Session
from training.errors import TrainingError
from training.networks import Autoencoder

OPSET = 20
PARITY = golden.TOLERANCE  # of the largest magnitude, or of 1 if that is less
_BATCHES = (1, 17)


class _Encoder(nn.Module):
    """uint8 (N, H, W, C) in, as the decoder of files makes it: the scaling is inside the graph."""

    def __init__(self, net: Autoencoder, reads: str) -> None:
        super().__init__()
        self.encoder, self.pool = net.encoder, net.pool if reads == "features" else None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        encoded = self.encoder(image.permute(0, 3, 1, 2).float() / 255)
        return (encoded.code,) if self.pool is None else (encoded.code, self.pool(encoded.maps))


class _Decoder(nn.Module):
    """float (N, H, W, C) in 0…1 out."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embedding: Tensor) -> Tensor:
        return self.decoder(embedding).sigmoid().permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Exported:
    """The graphs of a network as files and manifest entries."""

    def __init__(self, net: Autoencoder, head: nn.Linear | None, spec: InputSpec, reads: str = "embedding") -> None:
        """`reads` names what the head takes: the encoder gives `features` only where it is asked for."""
        self.spec, self.latent_size = spec, net.latent
        image = TensorSpec(name="image", dtype="uint8", shape=(-1, *spec.shape))
        embedding, features = _floats("embedding", net.latent), _floats("features", net.pool.size)
        taken = features if reads == "features" else embedding
        given = (embedding, features) if reads == "features" else (embedding,)
        drawn = _floats("reconstruction", *spec.shape)
        self.files: dict[str, bytes] = {}
        self.graphs = Graphs(
            encoder=self._graph("encoder", _Encoder(net, reads), image, *given),
            decoder=self._graph("decoder", _Decoder(net.decoder), embedding, drawn),
            head=None if head is None else self._graph("head", head, taken, _floats("logits", head.out_features)),
        )

    def _graph(self, name: str, module: nn.Module, taken: TensorSpec, *given: TensorSpec) -> Graph:
        graph = Graph(file=f"{name}.onnx", input=taken, outputs=given)
        module = module.cpu().eval()
        self.files[graph.file] = to_onnx(module, graph)
        _require_parity(module, self.files[graph.file], graph)
        return graph


def to_onnx(module: nn.Module, graph: Graph) -> bytes:
    """One graph, its weights inside, its batch free; without the exporter's notes, which quote paths and source."""
    example = _random_input(graph.input, 2)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here uses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; parity below is the judge
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[graph.input.name],
            output_names=[tensor.name for tensor in graph.outputs],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for message in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        del message.metadata_props[:]
        message.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def _require_parity(module: nn.Module, model: bytes, graph: Graph) -> None:
    """Fresh random input, alone and in a batch."""
    session = Session(model, graph, graph.file, threads=1)
    for size in _BATCHES:
        batch = _random_input(graph.input, size)
        with torch.no_grad():
            expected = module(batch)
        outputs = session.run(batch.numpy())
        for tensor, value in zip(graph.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
            difference = float(np.abs(outputs[tensor.name] - value.numpy()).max())
            if not difference <= PARITY * max(1.0, value.abs().max().item()):
                raise TrainingError(
                    f"{graph.file}: {tensor.name} of onnxruntime is off torch's by {difference:.3g} at batch {size}: "
                    "not exported"
                )


def publish(models: Path, name: str, exported: Exported, rest: dict[str, Any], files: dict[str, bytes]) -> Path:
    """Save the bundle; `rest` are the manifest's fields that the graphs do not settle, `files` their files."""
    fields = {
        "schema_version": SCHEMA_VERSION,
        "input": exported.spec,
        "latent_size": exported.latent_size,
        "graphs": exported.graphs,
        **rest,
    }
    return save(models, name, fields, {**exported.files, **files})


def rehearse(name: str, exported: Exported, rest: dict[str, Any], files: dict[str, bytes]) -> Bundle:
    """The bundle as it would be loaded, saved where nobody serves from: to be measured before it is published."""
    with tempfile.TemporaryDirectory() as folder:
        return load(publish(Path(folder), name, exported, rest, files))


def _floats(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=(-1, *shape))


def _random_input(taken: TensorSpec, size: int) -> Tensor:
    shape = (size, *taken.shape[1:])
    return torch.randint(0, 256, shape, dtype=torch.uint8) if taken.dtype == "uint8" else torch.randn(shape)
