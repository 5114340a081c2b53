"""torch modules → ONNX graphs; torch and onnxruntime must agree on each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.bundle import golden
from app.bundle.manifest import Graph, Graphs, InputSpec
from app.bundle.manifest import Tensor as TensorSpec
from app.bundle.session import Session
from training.errors import TrainingError
from training.networks.autoencoder import Autoencoder
from training.networks.encoded import GRID, Patches, Strides, chosen_maps
from training.networks.graph import (
    OPSET,
    EncoderGraph,
    TileGraph,
    encoder_graph,
    random_input,
    tile_graph,
    to_onnx,
)
from training.networks.head import Head, labels_of
from training.networks.spans import spread
from training.score import evidence

PARITY = golden.TOLERANCE  # of the largest magnitude, or of 1 if that is less
_BATCHES = (1, 17)


class _Decoder(nn.Module):
    """float (N, H, W, C) in 0…1 out."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embedding: Tensor) -> Tensor:
        return self.decoder(embedding).sigmoid().permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class _Explainer(nn.Module):
    """(N, features) → (N, labels, GRID, GRID): each place's share of a linear head's logits, without the bias.

    A map with fewer cells than the grid spreads each of its cells over the area that it covers.
    """

    def __init__(self, head: nn.Linear, maps: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.sizes = [math.prod(each) for each in maps]
        self.maps = list(maps)
        for index, (part, (channels, rows, columns)) in enumerate(
            zip(torch.split(head.weight.detach(), self.sizes, dim=1), maps, strict=True)
        ):
            self.register_buffer(f"weight{index}", part.view(-1, channels, rows, columns))
            self.register_buffer(f"rows{index}", torch.from_numpy(spread(rows, GRID)))
            self.register_buffer(f"columns{index}", torch.from_numpy(spread(columns, GRID)))

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor | None = None
        for index, (part, shape) in enumerate(zip(torch.split(features, self.sizes, dim=1), self.maps, strict=True)):
            weight, rows, columns = (self.get_buffer(f"{name}{index}") for name in ("weight", "rows", "columns"))
            cells = (part.view(-1, 1, *shape) * weight).sum(dim=2)  # (N, labels, rows, columns) of this map
            spread = rows @ cells @ columns.T
            total = spread if total is None else total + spread
        assert total is not None
        return total


@dataclass(frozen=True)
class Exported:
    """The graphs of a network as files and manifest entries."""

    spec: InputSpec
    latent_size: int
    feature_maps: tuple[tuple[int, ...], ...]
    graphs: Graphs
    files: dict[str, bytes]
    tolerances: dict[str, float]  # of golden tensors, where they differ from golden.TOLERANCE
    levels: tuple[tuple[int, int, int], ...] = ()  # of patch_features: (channels, rows, columns) with the same places

    @property
    def fields(self) -> dict[str, Any]:
        """The manifest's fields that follow from the graphs."""
        return {
            "input": self.spec,
            "latent_size": self.latent_size,
            "feature_maps": self.feature_maps,
            "graphs": self.graphs,
        }


def export(
    net: Autoencoder,
    head: Head | None,
    spec: InputSpec,
    *,
    reads: str = "embedding",
    features: bool = False,
    decodes: bool = True,
    patches: Strides | None = None,
) -> Exported:
    """`reads` names the input of the head; the encoder outputs `features` if the head or `features` asks for them.

    The decoder is exported if the bundle `decodes`. With `patches`, the encoder gives the maps of these strides too.
    """
    features = features or (head is not None and reads == "features")
    joined = None if patches is None else chosen_maps(net.encoder.maps, spec.height, patches)
    of_tiles = joined if spec.tiles is not None else None
    stated = encoder_graph(net, spec.shape, features, joined)
    if of_tiles is not None:
        stated = tile_graph(net, spec.shape, of_tiles)
    given = {tensor.name: tensor for tensor in stated.outputs}
    maps = tuple(tuple(each) for each in net.pool.shapes) if features else ()
    files: dict[str, bytes] = {}

    def graph(name: str, module: nn.Module, input: TensorSpec, *outputs: TensorSpec) -> Graph:  # noqa: A002
        return proven(Graph(file=f"{name}.onnx", input=input, outputs=outputs), module)

    def proven(stated: Graph, module: nn.Module) -> Graph:
        module = module.cpu().eval()
        files[stated.file] = to_onnx(module, stated)
        _require_parity(module, files[stated.file], stated)
        return stated

    encoder = proven(stated, EncoderGraph(net, features, joined) if of_tiles is None else TileGraph(net, of_tiles))
    decoder = classifier = explainer = None
    if decodes:
        decoder = graph("decoder", _Decoder(net.decoder), given["embedding"], _floats("reconstruction", *spec.shape))
    if head is not None:
        logits = _floats("logits", labels_of(head))
        classifier = graph("head", head, given[reads], logits)
        averaged = evidence.map_of(encoder, reads)
        if isinstance(head, nn.Linear) and averaged is not None:
            explainer = evidence.graph(averaged, head.out_features)
            files[explainer.file] = evidence.to_onnx(head.weight.detach().numpy().T, None, explainer, OPSET)
            _require_sum(head, files[explainer.file], explainer)
        elif isinstance(head, nn.Linear) and reads == "features" and _have_places(maps):
            places = _floats("evidence", head.out_features, GRID, GRID)
            explainer = graph("explain", _Explainer(head, maps), given[reads], places)
    graphs = Graphs(encoder=encoder, decoder=decoder, head=classifier, explain=explainer)
    return Exported(
        spec=spec,
        latent_size=given["embedding"].shape[1],
        feature_maps=maps,
        graphs=graphs,
        files=files,
        tolerances={},
        levels=() if joined is None else Patches(net.encoder.maps, joined).levels,
    )


def _have_places(maps: Sequence[tuple[int, ...]]) -> bool:
    return all(len(each) == 3 for each in maps) and any(math.prod(each[1:]) > 1 for each in maps)


def _require_parity(module: nn.Module, model: bytes, graph: Graph) -> None:
    """On random input, alone and in a batch."""
    session = Session(model, graph, graph.file, threads=1)
    for size in _BATCHES:
        batch = random_input(graph.input, size)
        with torch.no_grad():
            expected = module(batch)
        outputs = session.run(batch.numpy())
        for tensor, value in zip(graph.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
            difference = float(np.abs(outputs[tensor.name] - value.numpy()).max())
            if not difference <= PARITY * max(1.0, value.abs().max().item()):
                raise TrainingError(
                    f"{graph.file}: {tensor.name} of onnxruntime differs from torch's by {difference:.3g} at batch "
                    f"{size}: not exported"
                )


def _require_sum(head: nn.Linear, model: bytes, graph: Graph) -> None:
    """Over all places of a random map, the evidence adds up to the head's logits without the bias."""
    maps = random_input(graph.input, 2)
    with torch.no_grad():
        expected = (head(maps[:, -head.in_features :].mean(dim=(2, 3))) - head.bias).numpy()
    found = Session(model, graph, graph.file, threads=1).run(maps.numpy())[graph.outputs[0].name].sum(axis=(2, 3))
    difference = float(np.abs(found - expected).max())
    if not difference <= PARITY * max(1.0, float(np.abs(expected).max())):
        raise TrainingError(f"{graph.file}: its places add up to logits that are off by {difference:.3g}: not exported")


def _floats(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=(-1, *shape))
