"""A small residual convolutional autoencoder for images of 28 to 224 pixels; the default."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks import encoded
from training.networks.encoded import Encoded
from training.recipe import Network

SMALLEST = 4  # sides are halved until the longer is no larger


def stages(shape: tuple[int, int, int], width: int, most: int) -> list[tuple[int, int, int]]:
    """(channels, height, width) after every halving: 28×28 and 32 give 32×14×14, 64×7×7, 128×4×4, unless `most`."""
    height, across, _ = shape
    found: list[tuple[int, int, int]] = []
    while not found or max(height, across) > SMALLEST:
        height, across = -(-height // 2), -(-across // 2)
        found.append((min(most, width * 2 ** len(found)), height, across))
    return found


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut; the first may halve the sides."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made)
        self.second, self.second_norm = nn.Conv2d(made, made, 3, 1, 1, bias=False), nn.BatchNorm2d(made)
        # Averaged before the 1×1 convolution, rather than skipped by it: nothing is lost, gradients stay channels-last,
        # and oneDNN's strided 1×1 convolution, which writes beyond its memory in training (torch 2.13), is not met.
        smaller = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        wider = nn.Conv2d(given, made, 1, bias=False) if given != made else nn.Identity()
        self.shortcut = nn.Sequential(smaller, wider)

    def forward(self, image: Tensor) -> Tensor:
        changed = self.second_norm(self.second(F.relu(self.first_norm(self.first(image)), inplace=True)))
        return F.relu(changed + self.shortcut(image), inplace=True)


def plain(given: int, made: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU(inplace=True))


class Encoder(encoded.Encoder):
    def __init__(self, shape: tuple[int, int, int], network: Network) -> None:
        super().__init__()
        made, latent = stages(shape, network.width, network.most), network.latent
        self.latent, self.maps = latent, list(made)
        self.activation = encoded.ACTIVATIONS[network.activation]
        channels = [network.stem or shape[2], *(each[0] for each in made)]
        block = Residual if network.shortcuts else plain
        self.stages = nn.ModuleList(
            nn.Sequential(block(a, b, 2), *(block(b, b) for _ in range(network.depth - 1)))
            for a, b in pairwise(channels)
        )
        if network.stem:
            look = nn.Conv2d(shape[2], network.stem, 3, padding=1, bias=False), nn.BatchNorm2d(network.stem), nn.ReLU()
            self.stages[0] = nn.Sequential(*look, self.stages[0])
        last, high, wide = made[-1]
        self.code = nn.Linear(last * high * wide, latent)
        self.log_variance = nn.Linear(last * high * wide, latent) if network.variational else None

    def blocks(self) -> list[nn.Module]:
        return [*self.stages, *(part for part in (self.code, self.log_variance) if part is not None)]

    def forward(self, image: Tensor) -> Encoded:
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        flat = image.flatten(1)
        spread = None if self.log_variance is None else self.log_variance(flat)
        return Encoded(self.activation(self.code(flat)), maps, spread)


class Decoder(nn.Module):
    """The stages backwards, each enlarged to the size that the encoder had there.

    The last halving is undone by rearranging: four times the channels at half the sides cost a quarter of a
    convolution at the full size.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, most: int, latent: int) -> None:
        super().__init__()
        shapes = stages(shape, width, most)[::-1]
        self.start, self.shape = shapes[0], shape
        self.sizes = [(high, wide) for _, high, wide in shapes[1:]]
        last, high, wide = self.start
        self.spread = nn.Linear(latent, last * high * wide)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for (a, *_), (b, *_) in pairwise(shapes)
        )
        self.image = nn.Sequential(nn.Conv2d(shapes[-1][0], 4 * shape[2], 3, padding=1), nn.PixelShuffle(2))

    def forward(self, code: Tensor) -> Tensor:
        image = F.relu(self.spread(code)).reshape(-1, *self.start).contiguous(memory_format=torch.channels_last)
        for stage, size in zip(self.stages, self.sizes, strict=True):
            image = stage(F.interpolate(image, size=size, mode="nearest"))
        return self.image(image)[:, :, : self.shape[0], : self.shape[1]]  # type: ignore[no-any-return]
