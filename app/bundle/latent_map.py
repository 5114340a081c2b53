"""A plane through the space of codes, and where held-out images fall on it: to be looked at, not to judge by."""

from dataclasses import dataclass

import numpy as np

from app.bundle.scoring import numbers


@dataclass(frozen=True)
class LatentMap:
    """An embedding falls on (embedding - mean) · directions."""

    mean: np.ndarray  # (D,)
    directions: np.ndarray  # (D, 2)
    points: np.ndarray  # (N, 2)
    labels: np.ndarray | None  # (N,) each an index into the classifier's labels

    @classmethod
    def of(cls, reference: dict[str, np.ndarray], size: int, labels: int | None) -> "LatentMap | None":
        """The arrays `map.…` of a reference file, where it has them. A ValueError names the one that does not fit."""
        if "map.points" not in reference:
            return None
        mean = numbers(reference, "map.mean", (size,))
        directions = numbers(reference, "map.directions", (size, 2))
        points = numbers(reference, "map.points", (None, 2))
        found = reference.get("map.labels")
        if found is not None and (
            labels is None
            or found.dtype.kind not in "iu"
            or found.shape != points.shape[:1]
            or not _below(found, labels)
        ):
            raise ValueError("array map.labels: for each point the index of one of the classifier's labels is expected")
        return cls(mean, directions, points, found)

    def at(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, D) → (N, 2)."""
        return np.asarray((embeddings - self.mean) @ self.directions)

    def arrays(self) -> dict[str, np.ndarray]:
        """As `of` reads them."""
        found = {"map.mean": self.mean, "map.directions": self.directions, "map.points": self.points}
        return found if self.labels is None else found | {"map.labels": self.labels}


def _below(indices: np.ndarray, count: int) -> bool:
    return not len(indices) or (int(indices.min()) >= 0 and int(indices.max()) < count)
