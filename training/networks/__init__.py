"""Autoencoders by name. Every encoder takes (N, C, H, W) in 0…1 and gives an Encoded; every decoder takes a code."""

from dataclasses import dataclass

from torch import Tensor, nn

from training.networks import conv, conv_seed, dense, resnet
from training.networks.encoded import Encoded, Encoder, Pool
from training.recipe import Network


@dataclass(frozen=True)
class Autoencoder:
    encoder: Encoder  # (N, C, H, W) in 0…1 → Encoded
    decoder: nn.Module  # (N, latent) → (N, C, H, W) logits; sigmoid gives 0…1
    pool: Pool  # maps of the encoder's stages → (N, features), what a head may read in place of the code
    latent: int

    def encode(self, images: Tensor) -> Encoded:
        return self.encoder(images)  # type: ignore[no-any-return]

    def read(self, images: Tensor, tensor: str) -> Tensor:
        """What a head takes: `embedding` or `features`."""
        encoded = self.encode(images)
        return encoded.code if tensor == "embedding" else self.pool(encoded.maps)

    def blocks(self) -> dict[str, nn.Module]:
        """The encoder's blocks by name, from the pixels up."""
        return {f"encoder.{index}": block for index, block in enumerate(self.encoder.blocks())}

    def blocks_read(self, tensor: str) -> list[str]:
        """The names of those that a head on `embedding` or `features` learns through."""
        aside = {id(getattr(self.encoder, "log_variance", None))}
        if tensor == "features":
            aside.add(id(getattr(self.encoder, "code", None)))
        return [name for name, block in self.blocks().items() if id(block) not in aside]


def build(network: Network, shape: tuple[int, int, int]) -> Autoencoder:
    """`shape` is (H, W, C), as the manifest has it."""
    encoder: Encoder
    decoder: nn.Module
    match network.kind:
        case "dense":
            encoder = dense.Encoder(shape, network.hidden, network.latent, network.variational)
            decoder = dense.Decoder(shape, network.hidden, network.latent)
        case "conv-seed":
            encoder, decoder = conv_seed.Encoder(shape), conv_seed.Decoder(shape)
        case "conv":
            encoder = conv.Encoder(shape, network)
            decoder = conv.Decoder(shape, network.width, network.most, network.latent)
        case "resnet18" | "resnet50":
            encoder = resnet.Encoder(network.kind, shape, network.weights)
            decoder = conv.Decoder(shape, network.width, network.most, encoder.latent)
    return Autoencoder(encoder, decoder, Pool(encoder.maps, network.grid, network.maxima), encoder.latent)


__all__ = ["Autoencoder", "Encoded", "build"]
