"""A small convolutional network that marks defects: five halvings, and three of them undone with the maps before them
at hand (Ronneberger et al. 2015)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks import conv, encoded
from training.networks.encoded import Encoded
from training.recipe import Network

HALVINGS = 5
_UNDONE = 3  # so that places of the marks are 4 pixels apart
_RARE = -3.0  # logit that the marks begin with: few places have a defect


class Encoder(encoded.Encoder):
    marks: tuple[int, ...]

    def __init__(self, shape: tuple[int, int, int], network: Network) -> None:
        super().__init__()
        height, across, given = shape
        self.maps = []
        for number in range(HALVINGS):
            height, across = -(-height // 2), -(-across // 2)
            self.maps.append((min(network.most, network.width * 2**number), height, across))
        channels = [each[0] for each in self.maps]
        self.latent = channels[-1]
        first = nn.Sequential(
            nn.Conv2d(given, channels[0], 5, 2, 2, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)
        )
        self.down = nn.ModuleList(
            [
                first,
                *(
                    nn.Sequential(conv.Residual(a, b, 2), *(conv.Residual(b, b) for _ in range(network.depth - 1)))
                    for a, b in pairwise(channels)
                ),
            ]
        )
        beside = channels[-2 : -2 - _UNDONE : -1]  # of the maps that are joined
        self.up = nn.ModuleList(conv.plain(a + b, b) for a, b in zip([channels[-1], *beside[:-1]], beside, strict=True))
        self.mark = nn.Conv2d(beside[-1], 1, 1)
        nn.init.constant_(self.mark.bias, _RARE)  # type: ignore[arg-type]
        self.marks = (1, *self.maps[-1 - _UNDONE][1:])

    def blocks(self) -> list[nn.Module]:
        return [*self.down, *self.up, self.mark]

    def forward(self, image: Tensor) -> Encoded:
        image = image * 4 - 2
        maps = []
        for step in self.down:
            image = step(image)
            maps.append(image)
        for step, beside in zip(self.up, maps[-2::-1], strict=False):
            enlarged = F.interpolate(image, size=beside.shape[2:], mode="bilinear", align_corners=False)
            image = step(torch.cat([enlarged, beside], dim=1))
        return Encoded(maps[-1].mean(dim=(2, 3)), maps, marks=self.mark(image))


class Together(encoded.Encoder):
    """Several networks on the same image: each one's marks are a channel; codes and maps are joined."""

    marks: tuple[int, ...]

    def __init__(self, shape: tuple[int, int, int], network: Network, count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(Encoder(shape, network) for _ in range(count))
        one = self.members[0]
        assert isinstance(one, Encoder)
        self.latent = count * one.latent
        self.maps = [(count * channels, *sides) for channels, *sides in one.maps]
        self.marks = (count, *one.marks[1:])

    def blocks(self) -> list[nn.Module]:
        return [block for member in self.members for block in member.blocks()]  # type: ignore[operator]

    def forward(self, image: Tensor) -> Encoded:
        codes, maps, _, marks = zip(*(member(image) for member in self.members), strict=True)
        return Encoded(
            torch.cat(codes, dim=1),
            [torch.cat(each, dim=1) for each in zip(*maps, strict=True)],
            marks=torch.cat(marks, dim=1),
        )
