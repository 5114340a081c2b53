"""A linear head on a frozen encoder: logistic regression whose penalty is chosen by cross-validation."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.imageset import ImageSet
from training.data.storage import Rows, allocate, chunks, take
from training.learning.finetune import class_weights
from training.learning.inference import moments, read
from training.learning.workshop import Workshop
from training.networks import head as heads
from training.networks.head import Head
from training.progress import say, track
from training.recipe import LinearMode

PENALTIES = tuple(
    10.0**power for power in (-1, -1.5, -2, -2.5, -3, -3.5, -4, -4.5, -5, -5.5, -6)
)  # each begins from the last
_USUAL = 10**-3.5  # where a class has too few images to choose by
_FOLDS = 4
_MOST_TO_CHOOSE_BY = 10_000  # images
_LENGTH = 3.0  # root mean square of the centred points that the penalties are meant for
_WORSE = 2  # penalties in a row that are worse than the best end the search
_STEPS = 100
_TOLERANCE = 1e-6  # of loss and weights, below which a step is the last


@dataclass(frozen=True)
class Problem:
    points: np.ndarray | Rows  # (N, D) float32, centred and scaled; may be larger than memory
    labels: Tensor  # (N,)
    weights: Tensor | None  # of the classes, (K,)
    classes: int

    def of(self, rows: np.ndarray) -> "Problem":
        return replace(self, points=take(self.points, rows), labels=self.labels[rows])

    def loss(self, layer: Tensor) -> Tensor:
        """Mean cross-entropy of a layer (K, D + 1), the bias last; with its gradient, if it takes one."""
        total, start = torch.zeros(()), 0
        for part in chunks(self.points):
            y = self.labels[start : start + len(part)]
            start += len(part)
            logits = F.linear(torch.from_numpy(part), layer[:, :-1], layer[:, -1])
            total = total + F.cross_entropy(logits, y, self.weights, reduction="sum") / len(self.points)
        return total


def train_linear(workshop: Workshop, train: ImageSet, _: ImageSet, transfer: LinearMode) -> Head:
    weights = class_weights(train) if transfer.class_weights else None
    return head_on(read(workshop, train, transfer.reads), train.labels, len(train.classes), weights)


def head_on(points: np.ndarray, labels: np.ndarray, classes: int, weights: Tensor | None = None) -> Head:
    """The head takes the encoder's outputs (N, D) as they are: centring and scaling are folded into it."""
    centred, mean, scale = centre_and_scale(points)
    problem = Problem(points=centred, labels=torch.from_numpy(labels), weights=weights, classes=classes)
    penalty = choose(problem)
    layer = fit(problem, penalty)
    say(f"linear: penalty {penalty:.2g}, loss {float(problem.loss(layer)):.4f} on {len(points):,} training images")
    head = heads.make(points.shape[1], classes, hidden=0)
    with torch.no_grad():
        weight = layer[:, :-1] / scale
        linear = heads.reading(head)
        linear.weight.copy_(weight)
        linear.bias.copy_(layer[:, -1] - weight @ mean)
    return head


def choose(problem: Problem) -> float:
    """The penalty with the least loss on folds left out in turn; every fold holds its share of each class."""
    counts = np.bincount(problem.labels.numpy(), minlength=problem.classes)
    if counts[counts > 0].min() < 2:
        return _USUAL
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(problem.labels))[:_MOST_TO_CHOOSE_BY]
    rows = rows[np.argsort(problem.labels.numpy()[rows], kind="stable")]
    fold = np.arange(len(rows)) % _FOLDS
    parts = [
        (problem.of(np.sort(rows[fold != each])), problem.of(np.sort(rows[fold == each]))) for each in range(_FOLDS)
    ]
    layers: list[Tensor | None] = [None] * _FOLDS
    losses: list[float] = []
    for penalty in track(PENALTIES, "penalty", len(PENALTIES)):
        losses.append(0.0)
        for number, (train, held_out) in enumerate(parts):
            layer = layers[number] = fit(train, penalty, layers[number])
            losses[-1] += float(held_out.loss(layer)) * len(held_out.labels)
        if len(losses) - int(np.argmin(losses)) > _WORSE:
            break
    return PENALTIES[int(np.argmin(losses))]


def fit(problem: Problem, penalty: float, layer: Tensor | None = None) -> Tensor:
    """(K, D + 1): minimises mean cross-entropy + penalty/2 · ‖weight‖² by L-BFGS, from `layer` if it is given."""
    if layer is None:
        layer = torch.zeros(problem.classes, problem.points.shape[1] + 1)
    layer = layer.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([layer], max_iter=_STEPS, tolerance_change=_TOLERANCE, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = problem.loss(layer) + penalty / 2 * layer[:, :-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return layer.detach()


def centre_and_scale(points: np.ndarray) -> tuple[np.ndarray, Tensor, float]:
    """(N, D) → (centred points, scaled as a whole, their mean before, the scale).

    Each feature keeps its share of the distances. Scaling each by itself makes noise of those that hardly vary.
    """
    mean, std = moments(points)
    scale = float(std.square().sum().sqrt()) / _LENGTH
    centred, start = allocate(points.shape, np.float32), 0
    for part in chunks(points):
        centred[start : start + len(part)] = (part - mean.numpy()) / np.float32(scale)
        start += len(part)
    return centred, mean, scale
