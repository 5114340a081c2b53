"""The loss of labels: cross-entropy where an image has one, a binary one for each label where it may have several."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.imageset import ImageSet


@dataclass(frozen=True)
class LabelLoss:
    several: bool
    weights: Tensor | None = None  # of the classes, (K,), where an image has one

    @classmethod
    def of(cls, train: ImageSet, weighted: bool, device: torch.device | None = None) -> "LabelLoss":
        return cls(train.several is not None, class_weights(train).to(device) if weighted else None)

    def __call__(self, logits: Tensor, truth: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean over images. `truth` are labels (N,) or shares of the classes (N, K)."""
        if not self.several:
            return F.cross_entropy(logits, truth, self.weights, label_smoothing=smoothing)
        return independent(logits, truth * (1 - smoothing) + smoothing / 2).mean()


def independent(logits: Tensor, truth: Tensor) -> Tensor:
    """(N,): the sum over the labels, each a logistic regression of its own. `truth` (N, K) in 0…1."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(dim=1)


def truth_of(data: ImageSet) -> Tensor:
    """(N,) labels, or (N, K) 0 or 1 where an image may have several."""
    return torch.from_numpy(data.labels) if data.several is None else torch.from_numpy(data.several).float()


def class_weights(data: ImageSet) -> Tensor:
    """Weights inverse to the images of a class, 1 on average over images: each class has the same share of the loss."""
    counts = data.counts
    return torch.from_numpy(len(data) / (np.maximum(counts, 1) * len(data.classes))).float()
