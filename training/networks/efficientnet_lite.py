"""EfficientNet-Lite0 to -Lite2 (Tan and Le 2019, without squeeze-and-excitation and with ReLU6), for 3 channels.

The state dict has the names of the PyTorch port that publishes the weights.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from training.networks import encoded

MEAN, SCALE = 127.0, 128.0  # of grey levels 0…255: what the weights were trained on
MOMENTUM, EPSILON = 0.01, 1e-3  # of the norms, as published


@dataclass(frozen=True)
class Stage:
    """Blocks in a row; the first has the stride and takes the width of the stage before."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = tuple(
    Stage(*row)
    for row in (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
)
STEM, LAST = 32, 1280  # widths that no coefficient changes
COEFFICIENTS = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite1": (1.0, 1.1), "efficientnet-lite2": (1.1, 1.2)}


def stages(kind: str) -> list[Stage]:
    """The published scaling: widths to multiples of eight, first and last stage without more repeats."""
    wider, deeper = COEFFICIENTS[kind]
    ends = (0, len(STAGES) - 1)
    return [
        replace(
            stage,
            repeats=stage.repeats if number in ends else math.ceil(deeper * stage.repeats),
            width=_multiple_of_eight(wider * stage.width),
        )
        for number, stage in enumerate(STAGES)
    ]


def _multiple_of_eight(width: float) -> int:
    """The nearest, but never less than nine tenths."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * width else nearest + 8


class Same(nn.Conv2d):
    """A convolution whose output has ⌈side / stride⌉ places; an odd padding has its larger half at right and bottom."""

    def forward(self, image: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:
            return F.conv2d(image, self.weight, padding=kernel // 2, groups=self.groups)
        high, wide = ((max((-(-side // stride) - 1) * stride + kernel - side, 0)) for side in image.shape[-2:])
        image = F.pad(image, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(image, self.weight, stride=stride, groups=self.groups)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=EPSILON, momentum=MOMENTUM)


class Block(nn.Module):
    """Wider by a 1×1 convolution, then a depthwise one, then narrow again; beside a shortcut where shapes agree."""

    def __init__(self, given: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = given * stage.expansion
        self.wider = stage.expansion > 1
        if self.wider:
            self._expand_conv, self._bn0 = Same(given, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = Same(wide, wide, stage.kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = Same(wide, stage.width, 1, bias=False), _norm(stage.width)
        self.shortcut = stride == 1 and given == stage.width

    def forward(self, image: Tensor) -> Tensor:
        changed = F.relu6(self._bn0(self._expand_conv(image))) if self.wider else image
        changed = F.relu6(self._bn1(self._depthwise_conv(changed)))
        changed = self._bn2(self._project_conv(changed))
        return changed + image if self.shortcut else changed  # type: ignore[no-any-return]


class Encoder(encoded.Backbone):
    """The stage maps are the last at each size from a quarter of the sides down, then the last convolution's."""

    def __init__(self, kind: str, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, STEM, 3, 2, bias=False), _norm(STEM)
        self._blocks = nn.ModuleList()
        self.kept: list[int] = []  # of `_blocks`, those whose output is a stage map
        self.maps, sides, given = [], [-(-side // 2) for side in shape[:2]], STEM
        for number, stage in enumerate(made := stages(kind)):
            sides = [-(-side // stage.stride) for side in sides]
            for repeat in range(stage.repeats):
                self._blocks.append(Block(given, stage, 1 if repeat else stage.stride))
                given = stage.width
            last_of_its_size = number + 1 == len(made) or made[number + 1].stride > 1
            if number and last_of_its_size:
                self.kept.append(len(self._blocks) - 1)
                self.maps.append((given, *sides))
        self._conv_head, self._bn1 = Same(given, LAST, 1, bias=False), _norm(LAST)
        self.maps.append((LAST, *sides))
        self.latent = LAST

    def cut(self, count: int) -> None:
        if count < len(self.maps):
            del self._conv_head, self._bn1
            self.kept = self.kept[:count]
            del self._blocks[self.kept[-1] + 1 :]
        super().cut(count)

    def blocks(self) -> list[nn.Module]:
        """The stem; the blocks up to each stage map; the last convolution."""
        starts = (0, *(index + 1 for index in self.kept))
        sizes = [nn.ModuleList(self._blocks[a:b]) for a, b in pairwise(starts)]
        whole = len(self.maps) > len(self.kept)
        last = [nn.ModuleList([self._conv_head, self._bn1])] if whole else []
        return [nn.ModuleList([self._conv_stem, self._bn0]), *sizes, *last]

    def prepared(self, image: Tensor) -> Tensor:
        return (image.expand(-1, 3, -1, -1) * 255 - MEAN) / SCALE  # grey becomes the same thrice

    def step(self, number: int, image: Tensor) -> Tensor:
        if number == 0:
            return F.relu6(self._bn0(self._conv_stem(image)))
        if number > len(self.kept):
            return F.relu6(self._bn1(self._conv_head(image)))
        start = self.kept[number - 2] + 1 if number > 1 else 0
        for block in self._blocks[start : self.kept[number - 1] + 1]:
            image = block(image)
        return image
