"""An encoder's outputs, and the pooling of its stage maps."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.bundle.scoring import cells
from training.errors import TrainingError
from training.networks.spans import spread

GRID = 4  # cells of a side of pooled maps, where a recipe asks for no others, and of maps that explain


class Encoded(NamedTuple):
    code: Tensor  # (N, latent); of a variational encoder, the mean
    maps: list[Tensor]  # each stage's output, (N, C, H, W) or (N, D)
    log_variance: Tensor | None = None  # of a variational encoder, (N, latent)


# What is made of a code's last linear layer; decoder, head and score take what comes out.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda code: code,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}


class Encoder(nn.Module):
    """The interface of every encoder; `forward` returns an Encoded."""

    latent: int
    maps: list[tuple[int, ...]]  # shapes of Encoded.maps, without the batch

    def blocks(self) -> list[nn.Module]:
        """From the pixels up: what gradual unfreezing takes one by one."""
        raise NotImplementedError


class Backbone(Encoder):
    """Blocks in a row, of which the lower may run apart. The output of each but the first is a stage map; the code is
    the average of the last over its places."""

    def cut(self, count: int) -> None:
        """Leave out the blocks above the first `count` stage maps; the code is the average of the last of those."""
        self.maps = self.maps[:count]
        self.latent = self.maps[-1][0]

    def prepared(self, image: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) in 0…1 → what the first block takes."""
        raise NotImplementedError

    def step(self, number: int, image: Tensor) -> Tensor:
        """The output of a block of `blocks()`."""
        raise NotImplementedError

    def through(self, image: Tensor, start: int, stop: int) -> tuple[Tensor, list[Tensor]]:
        """(the output of the blocks from `start` to before `stop`, the stage maps among them)."""
        maps = []
        for number in range(start, stop):
            image = self.step(number, image)
            if number:
                maps.append(image)
        return image, maps

    def forward(self, image: Tensor) -> Encoded:
        last, maps = self.through(self.prepared(image), 0, len(self.blocks()))
        return Encoded(last.mean(dim=(2, 3)), maps)


class Pool(nn.Module):
    """Every map averaged over a grid of cells (or left as it is, where it is no larger or has no places), and joined.

    Where `maxima` are asked for, each cell's largest value comes beside its average.

    Adaptive average pooling as one matrix product, for any size: onnxruntime runs it, and it is faster in training than
    pooling rows and columns separately.
    """

    def __init__(self, shapes: list[tuple[int, ...]], grid: int = GRID, maxima: bool = False) -> None:
        """`shapes` are those of the maps, without the batch."""
        super().__init__()
        self.grid, self.maxima = grid, maxima
        self.shapes: list[tuple[int, ...]] = []  # of what is joined
        for index, (channels, *sides) in enumerate(shapes):
            coarser = any(side > grid for side in sides)
            pooled = (channels, *(min(grid, side) for side in sides))
            self.shapes += [pooled, pooled] if coarser and maxima else [pooled]
            if coarser:
                rows, columns = (torch.tensor(cells(side, grid)) for side in sides)
                self.register_buffer(f"cells{index}", torch.kron(rows, columns).T, persistent=False)
        self.size = sum(math.prod(each) for each in self.shapes)

    def forward(self, maps: list[Tensor], first: int = 0) -> Tensor:
        """`maps` are all of them, or those from number `first` on."""
        return torch.cat([part for index, each in enumerate(maps, first) for part in self._pooled(index, each)], dim=1)

    def _pooled(self, index: int, each: Tensor) -> list[Tensor]:
        averages = self._buffers.get(f"cells{index}")  # (H · W, cells)
        each = each.float()
        if averages is None:
            return [each.flatten(1)]
        found = [(each.flatten(2) @ averages).flatten(1)]
        if self.maxima:
            found.append(_largest(_largest(each, 2, self.grid), 3, self.grid).flatten(1))
        return found


class Places(nn.Module):
    """Maps joined channel by channel on the places of the last. The average of each channel stays as it is."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        """`shapes` are those of the maps, without the batch: (channels, rows, columns)."""
        super().__init__()
        _, *sides = shapes[-1]
        self.count, self.shape = len(shapes), (sum(channels for channels, *_ in shapes), *sides)
        for index, (_, *finer) in enumerate(shapes):
            if finer != sides:
                rows, columns = (
                    torch.from_numpy(spread(side, spans)) for side, spans in zip(finer, sides, strict=True)
                )
                share = math.prod(sides) / math.prod(finer)
                self.register_buffer(f"spread{index}", share * torch.kron(rows, columns).T, persistent=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([self._placed(index, each) for index, each in enumerate(maps)], dim=1)

    def _placed(self, index: int, each: Tensor) -> Tensor:
        shares = self._buffers.get(f"spread{index}")  # (H · W, places)
        return each if shares is None else (each.flatten(2) @ shares).view(-1, each.shape[1], *self.shape[1:])


class Joined(NamedTuple):
    """Numbers of stage maps: those that are joined, and the one on whose places."""

    maps: tuple[int, ...]
    on: int


Strides = tuple[int, ...]  # pixels from place to place; none: see `chosen_maps`


def chosen_maps(shapes: list[tuple[int, ...]], height: int, strides: Strides) -> Joined:
    """The maps of these strides, of each the first; without strides, those of the three sizes above the smallest.

    Their places are those of the coarsest but one.
    """
    by_stride: dict[int, int] = {}
    for number, (_, *sides) in enumerate(shapes):
        if sides:
            by_stride.setdefault(round(height / sides[0]), number)
    missing = [stride for stride in strides if stride not in by_stride]
    if missing or not by_stride:
        known = ", ".join(map(str, by_stride)) or "none"
        raise TrainingError(f"anomaly.strides={list(strides)}: the encoder has maps of strides {known}")
    numbers = sorted(by_stride[stride] for stride in strides or sorted(by_stride)[:-1][-3:] or by_stride)
    return Joined(tuple(numbers), numbers[-2:][0])


class Patches(nn.Module):
    """Maps joined channel by channel on the places of one of them.

    Coarser maps are interpolated. Of finer ones, each place has the average of the cells that it covers.
    """

    def __init__(self, shapes: list[tuple[int, ...]], joined: Joined) -> None:
        """`shapes` are those of all maps, without the batch."""
        super().__init__()
        self.joined, (_, *sides) = joined.maps, shapes[joined.on]
        self.shape = (sum(shapes[number][0] for number in joined.maps), *sides)
        self.coarser = {number for number in joined.maps if shapes[number][1:] < shapes[joined.on][1:]}

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([self._placed(number, maps[number]) for number in self.joined], dim=1)

    def _placed(self, number: int, each: Tensor) -> Tensor:
        sides = list(self.shape[1:])
        if number in self.coarser:
            return F.interpolate(each, size=sides, mode="bilinear", align_corners=False)
        return each if list(each.shape[2:]) == sides else _averaged(each, sides)


def _averaged(maps: Tensor, sides: list[int]) -> Tensor:
    """(N, C, H, W) → (N, C, *sides), each the average of a span, as equal as whole cells allow."""
    rows, columns = (
        torch.from_numpy(cells(side, most).copy()) for side, most in zip(maps.shape[2:], sides, strict=True)
    )
    return rows.to(maps) @ maps @ columns.T.to(maps)


def _largest(maps: Tensor, side: int, most: int) -> Tensor:
    """The side in equal, where need be overlapping, spans, of each the largest."""
    spans = [span.nonzero()[0] for span in cells(maps.shape[side], most)]
    return torch.stack([maps.narrow(side, int(s[0]), len(s)).amax(dim=side) for s in spans], dim=side)
