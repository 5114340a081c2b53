"""Autoencoders by name. Every encoder takes (N, C, H, W) in 0…1 and gives an Encoded; every decoder takes a code."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from training.errors import TrainingError
from training.networks import conv, conv_seed, dense, efficientnet_lite, encoded, resnet, weights
from training.networks.encoded import Encoded, Encoder, Pool
from training.recipe import Network

Shape = tuple[int, int, int]  # (H, W, C), as the manifest has it


@dataclass(frozen=True)
class Autoencoder:
    encoder: Encoder  # (N, C, H, W) in 0…1 → Encoded
    decoder: nn.Module  # (N, latent) → (N, C, H, W) logits; sigmoid gives 0…1
    pool: Pool  # maps of the encoder's stages → (N, features), what a head may read in place of the code
    latent: int
    published: bool = False  # the encoder is a backbone

    def encode(self, images: Tensor) -> Encoded:
        return self.encoder(images)  # type: ignore[no-any-return]

    def read(self, images: Tensor, tensor: str) -> Tensor:
        """A head's input: `embedding` or `features`."""
        encoded = self.encode(images)
        return encoded.code if tensor == "embedding" else self.pool(encoded.maps)

    def sizes_read(self, tensor: str) -> list[int]:
        """Of the parts that `embedding` or `features` joins."""
        return [self.latent] if tensor == "embedding" else [math.prod(shape) for shape in self.pool.shapes]

    def blocks(self) -> dict[str, nn.Module]:
        """The encoder's blocks by name, from the pixels up."""
        return {f"encoder.{index}": block for index, block in enumerate(self.encoder.blocks())}

    def blocks_read(self, tensor: str) -> list[str]:
        """The blocks that gradients of a head on `embedding` or `features` reach."""
        aside = {id(getattr(self.encoder, "log_variance", None))}
        if tensor == "features":
            aside.add(id(getattr(self.encoder, "code", None)))
        return [name for name, block in self.blocks().items() if id(block) not in aside]


def _dense(network: Network, shape: Shape) -> tuple[Encoder, nn.Module]:
    encoder = dense.Encoder(shape, network.hidden, network.latent, network.variational, activation=network.activation)
    return encoder, dense.Decoder(shape, network.hidden, network.latent)


def _conv_seed(_: Network, shape: Shape) -> tuple[Encoder, nn.Module]:
    return conv_seed.Encoder(shape), conv_seed.Decoder(shape)


def _conv(network: Network, shape: Shape) -> tuple[Encoder, nn.Module]:
    return conv.Encoder(shape, network), conv.Decoder(shape, network.width, network.most, network.latent)


KINDS: dict[str, Callable[[Network, Shape], tuple[Encoder, nn.Module]]] = {
    "conv": _conv,
    "conv-seed": _conv_seed,
    "dense": _dense,
}


@dataclass(frozen=True)
class Backbone:
    """A network of others: how its encoder is built, and how the names of its classifier's weights begin."""

    build: Callable[[str, Shape], encoded.Backbone]
    classifier: str


BACKBONES = {
    **dict.fromkeys(efficientnet_lite.COEFFICIENTS, Backbone(efficientnet_lite.Encoder, "_fc.")),
    **dict.fromkeys(resnet.DEPTHS, Backbone(resnet.Encoder, "fc.")),
}


def _backbone(network: Network, shape: Shape) -> tuple[Encoder, nn.Module]:
    assert network.backbone is not None
    made = BACKBONES[network.backbone]
    encoder = made.build(network.backbone, shape)
    if network.weights is not None:
        weights.load(encoder, network, made.classifier)
    if network.stages is not None:
        if network.stages > len(encoder.maps):
            raise TrainingError(f"network.stages={network.stages}: {network.backbone} has {len(encoder.maps)}")
        encoder.cut(network.stages)
    return encoder, conv.Decoder(shape, network.width, network.most, encoder.latent)


def build(network: Network, shape: Shape) -> Autoencoder:
    make = KINDS[network.kind] if network.backbone is None else _backbone
    encoder, decoder = make(network, shape)
    return Autoencoder(
        encoder=encoder,
        decoder=decoder,
        pool=Pool(encoder.maps, network.grid, network.maxima),
        latent=encoder.latent,
        published=network.backbone is not None,
    )
