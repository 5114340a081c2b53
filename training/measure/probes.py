"""The linear probe: logistic regression on fixed features."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
_USUAL = 1e-2  # with too few labels to choose by
_FEW = 5  # labels of a class, below which none is held out for the choice
_HELD_OUT = 0.2
_MOST_TO_CHOOSE_BY = 10_000
_STEPS = 100


class Probe:
    """(N, D) features → (N, classes) logits."""

    def __init__(self, points: np.ndarray, labels: np.ndarray, classes: int, seed: int = 0) -> None:
        """The penalty is chosen on a fifth of the given labels; then the probe is fitted on all of them."""
        x, self._mean, self._std = _standardised(points)
        y = torch.from_numpy(labels)
        self.decay = _choose(x, y, classes, seed)
        self._weight, self._bias = _fit(x, y, classes, self.decay)

    def accuracy(self, points: np.ndarray, labels: np.ndarray) -> float:
        return float((self._logits(points).argmax(dim=1).numpy() == labels).mean())

    def probabilities(self, points: np.ndarray) -> np.ndarray:
        """(N, classes)."""
        return self._logits(points).softmax(dim=1).numpy()

    def _logits(self, points: np.ndarray) -> Tensor:
        x = (torch.from_numpy(points) - self._mean) / self._std
        return F.linear(x, self._weight, self._bias)


def _standardised(points: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.from_numpy(points)
    mean, std = x.mean(0), x.std(0, unbiased=False)
    # Features that hardly vary stay small: scaled up they would be noise.
    std = std.clamp_min(float(std.mean()) * 0.1 + 1e-8)
    return (x - mean) / std, mean, std


def _choose(x: Tensor, y: Tensor, classes: int, seed: int) -> float:
    if int(torch.bincount(y, minlength=classes).min()) < _FEW:
        return _USUAL
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:_MOST_TO_CHOOSE_BY]
    held, seen = torch.tensor_split(order, [max(1, round(_HELD_OUT * len(order)))])
    losses = {}
    for decay in _DECAYS:
        weight, bias = _fit(x[seen], y[seen], classes, decay)
        losses[decay] = float(F.cross_entropy(F.linear(x[held], weight, bias), y[held]))
    # The penalty is relative to the sum over images: with more images, less of it per image.
    return min(losses, key=lambda decay: losses[decay]) * len(seen) / len(y)


def _fit(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Minimises mean cross-entropy + decay/2 · ‖weight‖² by L-BFGS."""
    # (classes, D), as the gradient of its transpose takes ten times as long where x is tall and classes are few.
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = F.cross_entropy(F.linear(x, weight, bias), y) + decay / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
