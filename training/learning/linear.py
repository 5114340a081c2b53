"""A linear head on a frozen encoder: logistic regression. What its maps count and its penalty are chosen by
cross-validation."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.imageset import ImageSet, strata_of
from training.data.storage import Rows, allocate, chunks, take
from training.learning.inference import moments, read
from training.learning.label_loss import class_weights, independent
from training.learning.workshop import Workshop
from training.networks import head as heads
from training.networks.head import Head
from training.progress import say, track
from training.recipe import LabelMode, LinearMode

PENALTIES = tuple(
    10.0**power for power in (-1, -1.5, -2, -2.5, -3, -3.5, -4, -4.5, -5, -5.5, -6)
)  # each begins from the last
# Of a map's part of what is read, as a multiple of that of the map above. Where labels are objects the highest map
# knows most, where they are textures the lower ones do.
SHARES = (0.0, 0.1, 0.25, 0.5)
_FOLDS = 4
_MOST_TO_CHOOSE_BY = 5_000  # images
_LENGTH = 3.0  # root mean square of the scaled points that the penalties are meant for
_WORSE = 2  # penalties in a row that are worse than the best end the search
_STEPS = 100
# Of loss and weights, below which a step is the last: of the head, and of those that only choose.
_TOLERANCE, _ROUGHLY = 1e-6, 1e-5


@dataclass(frozen=True)
class Choice:
    share: float  # of SHARES
    penalty: float
    loss: float  # mean loss of images left out; infinite where there was nothing to choose by


_USUAL = Choice(share=SHARES[0], penalty=10**-3.5, loss=math.inf)  # where there are too few images of a class


@dataclass(frozen=True)
class Problem:
    points: np.ndarray | Rows  # (N, D) float32, centred and scaled; may be larger than memory
    labels: Tensor  # (N,), or (N, K) of 0 and 1 where an image may have several
    weights: Tensor | None  # of the classes, (K,)
    classes: int

    def of(self, rows: np.ndarray) -> "Problem":
        return replace(self, points=take(self.points, rows), labels=self.labels[rows])

    def loss(self, layer: Tensor) -> Tensor:
        """Mean loss of a layer (K, D + 1), the bias last; with its gradient, if it takes one.

        Cross-entropy; where an image may have several labels, that of a logistic regression for each.
        """
        total, start = torch.zeros(()), 0
        for part in chunks(self.points):
            y = self.labels[start : start + len(part)]
            start += len(part)
            logits = F.linear(torch.from_numpy(part), layer[:, :-1], layer[:, -1])
            if y.ndim == 2:
                loss = independent(logits, y).sum()
            else:
                loss = F.cross_entropy(logits, y, self.weights, reduction="sum")
            total = total + loss / len(self.points)
        return total


def train_linear(workshop: Workshop, train: ImageSet, _: ImageSet, transfer: LinearMode) -> Head:
    return linear_head(workshop, train, transfer)


def linear_head(workshop: Workshop, train: ImageSet, transfer: LinearMode | LabelMode) -> Head:
    """By what `transfer` has the head read, and whether it weighs classes."""
    weights = class_weights(train) if transfer.class_weights else None
    points, maps = read(workshop, train, transfer.reads), workshop.net.sizes_read(transfer.reads)
    return head_on(points, train.truth, classes=len(train.classes), weights=weights, maps=maps)


@contextmanager
def one_thread() -> Iterator[None]:
    """The steps of a head are so short that threads would wait for each other for most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def head_on(
    points: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    weights: Tensor | None = None,
    maps: Sequence[int] = (),
) -> Head:
    """The head takes the encoder's outputs (N, D) as they are: centring and scaling are folded into it.

    `labels` are (N,), or (N, K) bool where an image may have several.
    `maps` are the sizes of the parts that D joins, from the lowest map up, if it joins any.
    """
    sizes = maps or (points.shape[1],)
    truth = torch.from_numpy(labels)
    truth = truth.float() if truth.ndim == 2 else truth

    def posed(share: float) -> tuple[Problem, Tensor, Tensor]:
        scaled, mean, factor = centre_and_scale(points, sizes, share)
        return Problem(scaled, truth, weights=weights, classes=classes), mean, factor

    choices: list[Choice] = []
    for share in track(SHARES, "head", len(SHARES)) if len(sizes) > 1 else SHARES[:1]:
        choices.append(choose(posed(share)[0], share, choices[-1].penalty if choices else None))
    best = min(choices, key=lambda choice: choice.loss)
    problem, mean, factor = posed(best.share)
    # The penalty weighs against the sum over images: with more images than chose it, less of it is due to each.
    penalty = best.penalty * min(1.0, _MOST_TO_CHOOSE_BY / len(points))
    layer = fit(problem, penalty)
    counts = f"each map {best.share:g} of the next, " if len(sizes) > 1 else ""
    loss = float(problem.loss(layer))
    say(f"linear: {counts}penalty {penalty:.2g}, loss {loss:.4f} on {len(points):,} training images")
    head = heads.make(points.shape[1], classes, hidden=0)
    with torch.no_grad():
        weight = layer[:, :-1] * factor
        linear = heads.reading(head)
        linear.weight.copy_(weight)
        linear.bias.copy_(layer[:, -1] - weight @ mean)
    return head


def choose(problem: Problem, share: float = SHARES[0], near: float | None = None) -> Choice:
    """The penalty with the least loss on folds left out in turn; every fold holds its share of each class.

    The points were scaled by `share`. The search begins at the penalty before `near`, or at the first.
    """
    strata = strata_of(problem.labels.numpy())
    counts = np.bincount(strata)
    few = len(strata) < 2 * _FOLDS if problem.labels.ndim == 2 else counts[counts > 0].min() < 2
    if few:
        return _USUAL
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(problem.labels))[:_MOST_TO_CHOOSE_BY]
    rows = rows[np.argsort(strata[rows], kind="stable")]
    fold = np.arange(len(rows)) % _FOLDS
    parts = [
        (problem.of(np.sort(rows[fold != each])), problem.of(np.sort(rows[fold == each]))) for each in range(_FOLDS)
    ]
    layers: list[Tensor | None] = [None] * _FOLDS
    losses: list[float] = []
    tried = PENALTIES if near is None else PENALTIES[max(0, PENALTIES.index(near) - 1) :]
    for penalty in tried:
        losses.append(0.0)
        for number, (train, held_out) in enumerate(parts):
            layer = layers[number] = fit(train, penalty, layers[number], _ROUGHLY)
            losses[-1] += float(held_out.loss(layer)) * len(held_out.labels)
        if len(losses) - int(np.argmin(losses)) > _WORSE:
            break
    best = int(np.argmin(losses))
    return Choice(share, tried[best], losses[best] / len(rows))


def fit(problem: Problem, penalty: float, layer: Tensor | None = None, tolerance: float = _TOLERANCE) -> Tensor:
    """(K, D + 1): minimises mean cross-entropy + penalty/2 · ‖weight‖² by L-BFGS, from `layer` if it is given."""
    if layer is None:
        layer = torch.zeros(problem.classes, problem.points.shape[1] + 1)
    layer = layer.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([layer], max_iter=_STEPS, tolerance_change=tolerance, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = problem.loss(layer) + penalty / 2 * layer[:, :-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return layer.detach()


def centre_and_scale(points: np.ndarray, maps: Sequence[int], share: float) -> tuple[np.ndarray, Tensor, Tensor]:
    """(N, D) → (the points centred and scaled; (D,) their mean before, (D,) what they were multiplied with).

    A map's part of the squared distances is `share` of that of the map above; within a map each feature keeps its own.
    Scaling each by itself makes noise of those that hardly vary.
    """
    mean, std = moments(points)
    parts = np.array([share ** (len(maps) - place) for place in range(1, len(maps) + 1)])
    lengths = np.array([float(part.square().sum()) for part in torch.split(std, list(maps))])
    factors = _LENGTH * np.sqrt(parts / parts.sum() / lengths)
    factor = torch.from_numpy(np.repeat(factors, maps).astype(np.float32))
    scaled, start = allocate(points.shape, np.float32), 0
    for part in chunks(points):
        scaled[start : start + len(part)] = (part - mean.numpy()) * factor.numpy()
        start += len(part)
    return scaled, mean, factor
