"""Autoencoders by name. Every encoder takes (N, C, H, W) in 0…1 and gives an Encoded; every decoder takes a code."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from training.networks import conv, conv_seed, dense, resnet
from training.networks.encoded import Encoded, Encoder, Pool
from training.recipe import Network

Shape = tuple[int, int, int]  # (H, W, C), as the manifest has it


@dataclass(frozen=True)
class Autoencoder:
    encoder: Encoder  # (N, C, H, W) in 0…1 → Encoded
    decoder: nn.Module  # (N, latent) → (N, C, H, W) logits; sigmoid gives 0…1
    pool: Pool  # maps of the encoder's stages → (N, features), what a head may read in place of the code
    latent: int

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


def _resnet(network: Network, shape: Shape) -> tuple[Encoder, nn.Module]:
    encoder = resnet.Encoder(network.kind, shape, network.weights)
    return encoder, conv.Decoder(shape, network.width, network.most, encoder.latent)


KINDS: dict[str, Callable[[Network, Shape], tuple[Encoder, nn.Module]]] = {
    "conv": _conv,
    "conv-seed": _conv_seed,
    "dense": _dense,
    "resnet18": _resnet,
    "resnet50": _resnet,
}


def build(network: Network, shape: Shape) -> Autoencoder:
    encoder, decoder = KINDS[network.kind](network, shape)
    return Autoencoder(encoder, decoder, Pool(encoder.maps, network.grid, network.maxima), encoder.latent)


__all__ = ["Autoencoder", "Encoded", "build"]
