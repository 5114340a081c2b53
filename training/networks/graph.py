"""torch modules → ONNX graphs."""

import logging
import warnings

import onnx
import torch
from torch import Tensor, nn

from app.bundle.manifest import PATCH_FEATURES, Graph
from app.bundle.manifest import Tensor as TensorSpec
from training.networks.autoencoder import Autoencoder
from training.networks.encoded import Backbone, Joined, Patches, Places

OPSET = 20


class EncoderGraph(nn.Module):
    """uint8 (N, H, W, C) in, as files are decoded: scaling is part of the graph.

    `embedding`, then `features` if they are asked for, then a backbone's `map`, then `patch_features`: the marks of a
    network that finds defects, or stage maps if they are named.
    """

    def __init__(self, net: Autoencoder, features: bool, patches: Joined | None = None) -> None:
        super().__init__()
        self.encoder, self.pool, self.places = net.encoder, net.pool if features else None, _places(net, features)
        self.patches = None if patches is None else Patches(net.encoder.maps, patches)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        encoded = self.encoder(image.permute(0, 3, 1, 2).float() / 255)
        outputs = [encoded.code]
        if self.pool is not None:
            outputs.append(self.pool(encoded.maps))
        if self.places is not None:
            outputs.append(self.places(encoded.maps[-self.places.count :]))
        if encoded.marks is not None:
            outputs.append(encoded.marks)
        elif self.patches is not None:
            outputs.append(self.patches(encoded.maps))
        return tuple(outputs)


class TileGraph(nn.Module):
    """uint8 (N, H, W, C) → `embedding`, `patch_features`: a backbone up to the last map that patches read.

    The embedding is that map's average. The blocks above it would take a third of the time.
    """

    def __init__(self, net: Autoencoder, patches: Joined) -> None:
        super().__init__()
        assert isinstance(net.encoder, Backbone)
        self.encoder, self.last = net.encoder, patches.maps[-1]
        self.patches = Patches(net.encoder.maps, patches)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        prepared = self.encoder.prepared(image.permute(0, 3, 1, 2).float() / 255)
        top, maps = self.encoder.through(prepared, 0, self.last + 2)  # the first block has no map
        return top.mean(dim=(2, 3)), self.patches(maps)


def tile_graph(net: Autoencoder, shape: tuple[int, int, int], patches: Joined) -> Graph:
    """What an exported TileGraph takes and gives."""
    sizes = {
        "embedding": net.encoder.maps[patches.maps[-1]][:1],
        PATCH_FEATURES: Patches(net.encoder.maps, patches).shape,
    }
    return Graph(
        file="encoder.onnx",
        input=TensorSpec(name="image", dtype="uint8", shape=(-1, *shape)),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=(-1, *size)) for name, size in sizes.items()),
    )


class LowerGraph(nn.Module):
    """uint8 (N, H, W, C) → (N, D): what the blocks of a backbone below number `start` give to the rest of the network,
    flat: the map that block `start` takes, and if `features`, the pooled stage maps among them."""

    def __init__(self, net: Autoencoder, start: int, features: bool) -> None:
        super().__init__()
        assert isinstance(net.encoder, Backbone)
        self.encoder, self.pool, self.start = net.encoder, net.pool if features else None, start

    def forward(self, image: Tensor) -> Tensor:
        prepared = self.encoder.prepared(image.permute(0, 3, 1, 2).float() / 255)
        last, maps = self.encoder.through(prepared, 0, self.start)
        flat = last.flatten(1)
        return flat if self.pool is None or not maps else torch.cat([flat, self.pool(maps)], dim=1)


def encoder_graph(
    net: Autoencoder, shape: tuple[int, int, int], features: bool, patches: Joined | None = None
) -> Graph:
    """What the exported encoder takes and gives; it gives `features` too if they are asked for.

    `patches` are the stage maps that `patch_features` joins, unless the network marks defects.

    A backbone's `map` (N, channels, rows, columns) has `embedding` as the average of its last channels over all places,
    and `features` as that of all channels, where these are averages of whole maps.
    """
    outputs: list[tuple[str, tuple[int, ...]]] = [("embedding", (net.latent,))]
    if features:
        outputs.append(("features", (net.pool.size,)))
    places = _places(net, features)
    if places is not None:
        outputs.append(("map", places.shape))
    if net.encoder.marks is not None:
        outputs.append((PATCH_FEATURES, net.encoder.marks))
    elif patches is not None:
        outputs.append((PATCH_FEATURES, Patches(net.encoder.maps, patches).shape))
    return Graph(
        file="encoder.onnx",
        input=TensorSpec(name="image", dtype="uint8", shape=(-1, *shape)),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=(-1, *sizes)) for name, sizes in outputs),
    )


def _places(net: Autoencoder, features: bool) -> Places | None:
    if not isinstance(net.encoder, Backbone):
        return None
    averages = features and net.pool.grid == 1
    return Places(net.encoder.maps if averages else net.encoder.maps[-1:])


def to_onnx(module: nn.Module, graph: Graph) -> bytes:
    """Weights inside, dynamic batch; without the exporter's notes, which quote paths and source."""
    example = random_input(graph.input, 2)
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns that torchvision is missing, which nothing here uses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; `_require_parity` checks the result
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


def random_input(tensor: TensorSpec, size: int) -> Tensor:
    shape = (size, *tensor.shape[1:])
    return torch.randint(0, 256, shape, dtype=torch.uint8) if tensor.dtype == "uint8" else torch.randn(shape)
