"""A linear head on a frozen encoder: logistic regression whose penalty is chosen by cross-validation."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.imageset import ImageSet
from training.data.storage import Rows, chunks
from training.learning.finetune import class_weights
from training.learning.inference import read
from training.learning.workshop import Workshop
from training.networks import head as heads
from training.networks.head import Head
from training.progress import say, track
from training.recipe import LinearMode

PENALTIES = tuple(10.0**power for power in (-1, -1.5, -2, -2.5, -3, -3.5, -4, -4.5, -5))  # each begins from the last
_USUAL = 10**-3.5  # where a class has too few images to choose by
_FOLDS = 4
_MOST_TO_CHOOSE_BY = 10_000  # images
_LENGTH = 3.0  # root mean square of the centred points that the penalties are meant for
_STEPS = 100


@dataclass(frozen=True)
class Problem:
    """Points with their labels. They are centred, and scaled as a whole: each feature keeps its share of the distances.

    Scaling each feature by itself makes noise of those that hardly vary: with ten labels a class that cost two points.
    """

    points: np.ndarray | Rows  # (N, D) float32; may be larger than memory
    labels: Tensor  # (N,)
    mean: Tensor  # (D,)
    scale: float
    weights: Tensor | None  # of the classes, (K,)
    classes: int

    def of(self, rows: np.ndarray) -> "Problem":
        return Problem(
            points=Rows(self.points, rows),
            labels=self.labels[rows],
            mean=self.mean,
            scale=self.scale,
            weights=self.weights,
            classes=self.classes,
        )

    def loss(self, layer: Tensor) -> Tensor:
        """Mean cross-entropy of a layer (K, D + 1), the bias last; with its gradient, if it takes one."""
        total, start = torch.zeros(()), 0
        for part in chunks(self.points):
            x = (torch.from_numpy(part) - self.mean) / self.scale
            y = self.labels[start : start + len(part)]
            start += len(part)
            logits = F.linear(x, layer[:, :-1], layer[:, -1])
            total = total + F.cross_entropy(logits, y, self.weights, reduction="sum") / len(self.points)
        return total


def train_linear(workshop: Workshop, train: ImageSet, _: ImageSet, transfer: LinearMode) -> Head:
    weights = class_weights(train) if transfer.class_weights else None
    return head_on(read(workshop, train, transfer.reads), train.labels, len(train.classes), weights)


def head_on(points: np.ndarray, labels: np.ndarray, classes: int, weights: Tensor | None = None) -> Head:
    """The head takes the encoder's outputs (N, D) as they are: centring and scaling are folded into it."""
    mean, scale = _centre_and_scale(points)
    problem = Problem(
        points=points,
        labels=torch.from_numpy(labels),
        mean=mean,
        scale=scale,
        weights=weights,
        classes=classes,
    )
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
    losses = np.zeros(len(PENALTIES))
    for left_out in track(range(_FOLDS), "penalty", _FOLDS):
        seen, held_out = problem.of(np.sort(rows[fold != left_out])), problem.of(np.sort(rows[fold == left_out]))
        layer = None
        for number, penalty in enumerate(PENALTIES):
            layer = fit(seen, penalty, layer)
            losses[number] += float(held_out.loss(layer)) * len(held_out.labels)
    return PENALTIES[int(losses.argmin())]


def fit(problem: Problem, penalty: float, layer: Tensor | None = None) -> Tensor:
    """(K, D + 1): minimises mean cross-entropy + penalty/2 · ‖weight‖² by L-BFGS, from `layer` if it is given."""
    if layer is None:
        layer = torch.zeros(problem.classes, problem.points.shape[1] + 1)
    layer = layer.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([layer], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = problem.loss(layer) + penalty / 2 * layer[:, :-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return layer.detach()


def _centre_and_scale(points: np.ndarray) -> tuple[Tensor, float]:
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in chunks(points)) / len(points)
    squares = sum(float(np.square(part - mean).sum()) for part in chunks(points)) / len(points)
    return torch.from_numpy(np.asarray(mean)).float(), max(float(np.sqrt(squares)), 1e-6) / _LENGTH
