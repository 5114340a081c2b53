"""A plane through the embedding space with the held-out images on it: for people to look at, not for decisions."""

from dataclasses import dataclass

import numpy as np

from app.bundle.scoring import numbers


@dataclass(frozen=True)
class LatentMap:
    """An embedding is projected to (embedding - mean) · directions."""

    mean: np.ndarray  # (D,)
    directions: np.ndarray  # (D, 2)
    points: np.ndarray  # (N, 2)
    labels: np.ndarray | None  # (N,) indices into the classifier's labels

    @classmethod
    def of(cls, reference: dict[str, np.ndarray], size: int, labels: int | None) -> "LatentMap | None":
        """From the arrays `map.…` of a reference file, if it has them. Raises ValueError naming one that does not fit.

        `size` is the embedding's, `labels` the classifier's number of labels.
        """
        if "map.points" not in reference:
            return None
        mean = numbers(reference, "map.mean", (size,))
        directions = numbers(reference, "map.directions", (size, 2))
        points = numbers(reference, "map.points", (None, 2))
        indices = reference.get("map.labels")
        if indices is not None and (
            labels is None
            or indices.dtype.kind not in "iu"
            or indices.shape != points.shape[:1]
            or not _in_range(indices, labels)
        ):
            raise ValueError("array map.labels: must hold the index of one of the classifier's labels for each point")
        return cls(mean, directions, points, indices)

    def at(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, D) → (N, 2)."""
        return np.asarray((embeddings - self.mean) @ self.directions)

    def arrays(self) -> dict[str, np.ndarray]:
        """The inverse of `of`."""
        arrays = {"map.mean": self.mean, "map.directions": self.directions, "map.points": self.points}
        return arrays if self.labels is None else arrays | {"map.labels": self.labels}


def _in_range(indices: np.ndarray, count: int) -> bool:
    return not len(indices) or (int(indices.min()) >= 0 and int(indices.max()) < count)
