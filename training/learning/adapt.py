"""Domain adaptation to a target without labels: the source's labels, and a penalty on differences between the domains.

    dann   a domain classifier reads the head's input through a layer that reverses gradients: it learns to separate
           source and target, and the encoder learns to make them indistinguishable (Ganin et al. 2016)
    mmd    the maximum mean discrepancy of the two domains is a penalty (Long et al. 2015, Gretton et al. 2012)

The weight of both grows from zero by DANN's published schedule. Each domain is normalised by its own batches, and the
exported network has the target's statistics (Li et al. 2016), which alone removes a shift or scale of all images.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.imageset import ImageSet
from training.learning.augment import augmented, erased
from training.learning.fit import Task, fit
from training.learning.inference import mean_loss
from training.learning.label_loss import class_weights
from training.learning.normalisation import recompute_statistics
from training.learning.workshop import Workshop
from training.networks import head as heads
from training.networks.head import Head
from training.recipe import AdaptMode, Augment, DannMode, MmdMode

WIDTHS = (0.25, 0.5, 1, 2, 4)  # of the kernels, in medians of the squared distances
LARGE = 512  # images of a domain in a batch, above which the discrepancy is taken in linear time
_HIDDEN = 256  # units of the domain classifier's two layers

Penalty = Callable[[Tensor, Tensor, float], Tensor]  # (N, D) of source and target, strength → loss term


def strength(progress: float) -> float:
    """From 0 to 1 over the steps: 2 / (1 + exp(-10 p)) - 1."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, points: Tensor, weight: float) -> Tensor:
        context.weight = weight
        return points.view_as(points)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None]:
        return -context.weight * gradients[0], None


def reversed_gradient(points: Tensor, weight: float) -> Tensor:
    """The points themselves; the gradient that comes back is multiplied by -weight."""
    return _Reversed.apply(points, weight)  # type: ignore[no-any-return, no-untyped-call]


def domain_classifier(size: int) -> nn.Module:
    """(N, size) → (N, 1) logits of being of the source."""
    return nn.Sequential(
        nn.Linear(size, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
    )


def adversarial(classifier: nn.Module, source: Tensor, target: Tensor, weight: float) -> Tensor:
    """The domain classifier's cross-entropy; the encoder, behind reversed gradients, learns to raise it by `weight`."""
    logits = classifier(reversed_gradient(torch.cat([source, target]), weight)).squeeze(1).float()
    is_source = torch.cat([torch.ones(len(source)), torch.zeros(len(target))]).to(logits.device)
    return F.binary_cross_entropy_with_logits(logits, is_source)


def discrepancy(source: Tensor, target: Tensor) -> Tensor:
    """(N, D), (M, D) → an unbiased estimate of the squared maximum mean discrepancy; below zero by chance.

    E k(s, s') + E k(t, t') - 2 E k(s, t), no point paired with itself, k the mean of Gaussian kernels.
    """
    within, other, across = (_squared(a, b) for a, b in ((source, source), (target, target), (source, target)))
    of_pairs = [_off_diagonal(within), _off_diagonal(other), across.flatten()]
    width = torch.cat(of_pairs).detach().median()
    same, target_points, both = (_kernel(each, width).mean() for each in of_pairs)
    return same + target_points - 2 * both


def discrepancy_linear(source: Tensor, target: Tensor) -> Tensor:
    """(N, D), (N, D) → the same in expectation, from N / 2 pairs of pairs: linear time and memory, higher variance.

    The mean of k(s, s') + k(t, t') - k(s, t') - k(s', t) over disjoint pairs of points.
    """
    pairs = len(source) // 2
    (s1, s2), (t1, t2) = (points[: 2 * pairs].reshape(2, pairs, -1) for points in (source, target))
    squared = torch.stack([(a - b).square().sum(1) for a, b in ((s1, s2), (t1, t2), (s1, t2), (s2, t1))])
    k = _kernel(squared, squared.detach().median())
    return (k[0] + k[1] - k[2] - k[3]).mean()


def _kernel(squared: Tensor, width: Tensor) -> Tensor:
    """Of squared distances; in 0…1."""
    width = width.clamp_min(torch.finfo(width.dtype).tiny)  # if all points are equal
    return torch.stack([(-squared / (share * width)).exp() for share in WIDTHS]).mean(0)


def _squared(one: Tensor, other: Tensor) -> Tensor:
    """(N, D), (M, D) → (N, M) squared distances."""
    norms = one.square().sum(1)[:, None] + other.square().sum(1)
    return (norms - 2 * one @ other.T).clamp_min(0)


def _off_diagonal(square: Tensor) -> Tensor:
    return square[~torch.eye(len(square), dtype=torch.bool, device=square.device)]


def adapt(
    workshop: Workshop,
    source: ImageSet,
    held_out: ImageSet,
    target: ImageSet,
    transfer: AdaptMode,
) -> Head:
    """The head and the whole encoder, from the source's labels and the target's images.

    The last epoch is kept: without labels of the target no loss tells which epoch is best for it.
    """
    net = workshop.net
    size = net.latent if transfer.reads == "embedding" else net.pool.size
    head = heads.make(size, len(source.classes), transfer.hidden).to(workshop.device)
    learning = net.blocks() | {"head": head}
    penalty, adaptation = None, 0.0
    if isinstance(transfer, DannMode | MmdMode):
        penalty, adaptation = PENALTIES[transfer.mode](transfer, size, learning), transfer.adaptation
    weights = class_weights(source).to(workshop.device) if transfer.class_weights else None

    def images(data: ImageSet, batch: Tensor, augment: Augment) -> Tensor:
        return erased(augmented(workshop.unit(data.images[batch.numpy()]), augment), augment)

    def read(given: Tensor) -> Tensor:
        with workshop.autocast():
            encoded = net.encode(given.contiguous(memory_format=torch.channels_last))
        return (encoded.code if transfer.reads == "embedding" else net.pool(encoded.maps)).float()

    def label_loss(points: Tensor, batch: Tensor, data: ImageSet, smoothing: float) -> Tensor:
        labels = torch.from_numpy(data.labels[batch.numpy()]).to(workshop.device)
        return F.cross_entropy(head(points), labels, weights, label_smoothing=smoothing)

    def loss(batch: Tensor, progress: float) -> Tensor:
        source_images = images(source, batch, transfer.augment)
        if penalty is None:
            return label_loss(read(source_images), batch, source, transfer.smoothing)
        target_images = images(target, torch.randint(len(target), (len(batch),)), transfer.augment)
        points, target_points = read(source_images), read(target_images)
        weight = adaptation * strength(progress)
        return label_loss(points, batch, source, transfer.smoothing) + penalty(points, target_points, weight)

    def held_out_loss(batch: Tensor) -> Tensor:
        return label_loss(read(images(held_out, batch, Augment())), batch, held_out, 0.0)

    task = Task(
        transfer.mode,
        learning,
        loss=loss,
        images=len(source),
        validate=lambda: mean_loss(held_out_loss, len(held_out)),
        keep="last",
    )
    fit(task, transfer, workshop.journal, workshop.checkpoints)
    if penalty is not None:
        recompute_statistics(workshop, target)
    return head


def _dann(transfer: AdaptMode, size: int, learning: dict[str, nn.Module]) -> Penalty:
    domains = domain_classifier(size).to(next(learning["head"].parameters()).device)
    learning["domains"] = domains
    return partial(adversarial, domains)


def _mmd(transfer: AdaptMode, size: int, learning: dict[str, nn.Module]) -> Penalty:
    estimate = discrepancy_linear if transfer.batch > LARGE else discrepancy
    return lambda source, target, weight: weight * estimate(source, target)


# Mode → function that makes its penalty, and adds the modules that the penalty trains to `learning`.
PENALTIES: dict[str, Callable[[AdaptMode, int, dict[str, nn.Module]], Penalty]] = {"dann": _dann, "mmd": _mmd}
