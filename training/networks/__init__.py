"""Autoencoders by name: an encoder and a decoder each, (N, C, H, W) float in 0…1 in and out, a flat code between."""

from dataclasses import dataclass

from torch import nn

from training.networks import conv_seed


@dataclass(frozen=True)
class Autoencoder:
    encoder: nn.Module  # (N, C, H, W) in 0…1 → (N, latent_size)
    decoder: nn.Module  # (N, latent_size) → (N, C, H, W) logits; sigmoid gives 0…1
    latent_size: int


def build(name: str, shape: tuple[int, int, int]) -> Autoencoder:
    """`shape` is (H, W, C), as the manifest has it."""
    match name:
        case "conv-seed":
            return Autoencoder(conv_seed.Encoder(shape), conv_seed.Decoder(shape), conv_seed.LATENT_SIZE)
    raise ValueError(f"no network {name!r}")
