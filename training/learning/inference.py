"""Runs the network over a whole set, in batches, without training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from training import ranks
from training.data.imageset import ImageSet
from training.data.storage import Rows, shared
from training.learning import distributed
from training.learning.workshop import Workshop
from training.networks import Autoencoder
from training.networks.head import Head

_BATCH = 1024  # limited by memory alone


def in_batches(function: Callable[[Tensor], Tensor], rows: np.ndarray | Rows) -> np.ndarray:
    """(N, …) → (N, D) float32: the function over all rows, without gradients; a machine's ranks share the work."""

    def of(part: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(part)).float().cpu().numpy()

    place, places = ranks.here()
    with torch.no_grad(), shared((len(rows), *of(rows[:1]).shape[1:]), np.float32) as found:
        for start in range(place * _BATCH, len(rows), places * _BATCH):
            found[start : start + _BATCH] = of(rows[start : start + _BATCH])
    return found


def mean_loss(loss: Callable[[Tensor], Tensor], rows: int) -> float:
    """`loss` takes the indices of some rows; each rank computes some of the batches."""
    mine = torch.split(torch.arange(rows), _BATCH)[ranks.rank() :: ranks.count()]
    return distributed.mean(sum(loss(part).item() * len(part) for part in mine)) * ranks.count() / rows


def read(workshop: Workshop, data: ImageSet, tensor: str) -> np.ndarray:
    """(N, D) float32: `embedding` or `features` of every image."""
    return in_batches(lambda images: workshop.net.read(workshop.unit(images), tensor), data.images)


def accuracy_of(net: Autoencoder, head: Head, tensor: str, data: ImageSet) -> float:
    """In torch, as trained; the exported graphs must agree with it."""

    def logits(images: Tensor) -> Tensor:
        return head(net.read(images.permute(0, 3, 1, 2).float() / 255, tensor))  # type: ignore[no-any-return]

    for module in (net.encoder, net.pool, head):
        module.cpu().eval()
    return float(np.mean(in_batches(logits, data.images).argmax(axis=1) == data.labels))
