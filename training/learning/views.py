"""Augmented views of images that are drawn once and kept, for what is too slow to run on new ones in every epoch."""

from collections.abc import Sequence

import numpy as np
import torch

from training import ranks
from training.data.storage import Rows, shared
from training.learning.augment import augmented, erased
from training.learning.inference import batch_size
from training.learning.workshop import Workshop
from training.recipe import Augment

Images = np.ndarray | Rows


def with_views(workshop: Workshop, parts: Sequence[Images], augment: Augment, views: int) -> Images:
    """((1 + views) · N, H, W, C) uint8: the N images of the parts, then a view of each in the same order, then another.

    The same views every time: a resumed run goes on with them.
    """
    if len(parts) == 1 and not views:
        return parts[0]
    count = sum(map(len, parts))
    with shared(((1 + views) * count, *parts[0].shape[1:]), np.uint8) as made:
        if ranks.here()[0] == 0:
            end = 0
            for part in parts:
                for start in range(0, len(part), size := batch_size(part.shape[1:])):
                    some = part[start : start + size]
                    made[end : end + len(some)] = some
                    end += len(some)
            _draw(workshop, made, count, augment)
    return made


def _draw(workshop: Workshop, made: np.ndarray, count: int, augment: Augment) -> None:
    """Fill the rows from `count` on with views of the rows before."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for start in range(count, len(made), count):
            for first in range(0, count, size := batch_size(made.shape[1:])):
                stop = min(first + size, count)
                view = erased(augmented(workshop.unit(made[first:stop]), augment), augment)
                made[start + first : start + stop] = (view * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def drawn_rows(batch: torch.Tensor, count: int, views: int) -> torch.Tensor:
    """The rows of a random view of each image of a batch, or of the image itself."""
    return batch + count * torch.randint(1 + views, (len(batch),)) if views else batch
