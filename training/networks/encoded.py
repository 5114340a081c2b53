"""What an encoder gives, and the pooling of its stage maps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from app.bundle.scoring import cells

GRID = 4  # maps are pooled to GRID × GRID


class Encoded(NamedTuple):
    code: Tensor  # (N, latent); of a variational encoder, the mean
    maps: list[Tensor]  # each stage's output, (N, C, H, W) or (N, D)
    log_variance: Tensor | None = None  # of a variational encoder, (N, latent)


class Encoder(nn.Module):
    """What every network's encoder has beside `forward`, which gives an Encoded."""

    latent: int
    maps: list[tuple[int, ...]]  # shapes of Encoded.maps, without the batch

    def blocks(self) -> list[nn.Module]:
        """From the pixels up: what gradual unfreezing takes one by one."""
        raise NotImplementedError


class Pool(nn.Module):
    """Every map averaged over a 4×4 grid (or left as it is, where it is smaller or has no grid), and joined.

    Adaptive average pooling written as one matrix product, for any size: onnxruntime knows those, and training is
    spared the thousands of tiny ones that rows and columns apart would be.
    """

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        """`shapes` are those of the maps, without the batch."""
        super().__init__()
        self.shapes = [(channels, *(min(GRID, side) for side in grid)) for channels, *grid in shapes]  # pooled
        self.size = sum(math.prod(each) for each in self.shapes)
        for index, (_, *grid) in enumerate(shapes):
            if any(side > GRID for side in grid):
                rows, columns = (torch.tensor(cells(side, GRID)) for side in grid)
                self.register_buffer(f"cells{index}", torch.kron(rows, columns).T, persistent=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([self._pooled(index, each) for index, each in enumerate(maps)], dim=1)

    def _pooled(self, index: int, each: Tensor) -> Tensor:
        averages = self._buffers.get(f"cells{index}")  # (H · W, 16)
        return (each.float().flatten(2) @ averages if averages is not None else each.float()).flatten(1)
