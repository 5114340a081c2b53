"""Drift statistics: do images look like the held-out ones? Pure numpy, computed from graph outputs.

The bundle's reference file holds `drift.embeddings`, the embeddings of some held-out images, and `drift.confidences`
if the bundle has a classifier. Older bundles have neither.

    maximum mean discrepancy   of two sets of embeddings; the Gaussian kernel is as wide as the reference's median
                               distance. p-value: how often a random subset of the reference, of the same size, is as
                               far from the rest of it
    population stability       Σ (p - q) · ln(p / q) over the deciles of the reference's confidences or anomaly
                               scores. Below 0.1: unchanged; above 0.25: much changed
"""

from functools import cached_property

import numpy as np

REFERENCES = 1000  # most embeddings in a reference
WINDOW = 400  # most images that are compared with it
FEWEST = 100  # fewest embeddings in a reference
EMBEDDINGS, CONFIDENCES = "drift.embeddings", "drift.confidences"
_DRAWS = 999
_BINS = 10


class DriftReference:
    def __init__(self, arrays: dict[str, np.ndarray], latent_size: int) -> None:
        """Raises ValueError naming the array that does not fit."""
        embeddings, confidences = arrays[EMBEDDINGS], arrays.get(CONFIDENCES)
        if embeddings.ndim != 2 or embeddings.shape[1] != latent_size or not FEWEST <= len(embeddings) <= REFERENCES:
            raise ValueError(f"array {EMBEDDINGS}: must have {FEWEST} to {REFERENCES} rows of {latent_size} numbers")
        for name, array in ((EMBEDDINGS, embeddings), (CONFIDENCES, confidences)):
            if array is not None and not (array.dtype.kind == "f" and array.size and np.isfinite(array).all()):
                raise ValueError(f"array {name}: must be finite floats, and not empty")
        self.embeddings = embeddings.astype(np.float32)  # (R, D)
        self.confidences = confidences
        self.window = min(WINDOW, len(embeddings) // 2)

    def discrepancy(self, embeddings: np.ndarray) -> tuple[float, float]:
        """(`window`, D) → (squared discrepancy, p-value). The first call takes 0.1 s: it computes `_drawn`."""
        within = self._kernel(embeddings, embeddings).mean()
        across = self._kernel(embeddings, self.embeddings).mean()
        squared = float(within + self._row_means.mean() - 2 * across)
        as_far = int((self._drawn >= squared).sum())
        return squared, (1 + as_far) / (1 + len(self._drawn))

    def by_chance(self, share: float) -> float:
        """The quantile `share` of the squared discrepancy under no drift."""
        return float(np.quantile(self._drawn, share))

    @cached_property
    def _row_means(self) -> np.ndarray:
        """(R,) row means of the reference's kernel matrix."""
        return np.asarray(self._kernel(self.embeddings, self.embeddings).mean(axis=1))

    @cached_property
    def _width(self) -> float:
        """The median squared distance of two references; the mean where most of them are equal."""
        squared = _squared(self.embeddings, self.embeddings)[np.triu_indices(len(self.embeddings), 1)]
        return float(np.median(squared) or squared.mean() or 1.0)

    @cached_property
    def _drawn(self) -> np.ndarray:
        """Squared discrepancies between `window` random references and the others, for each of _DRAWS draws."""
        count, size, rng = len(self.embeddings), self.window, np.random.default_rng(0)
        drawn = np.zeros((count, _DRAWS), np.float32)
        for column in range(_DRAWS):
            drawn[rng.permutation(count)[:size], column] = 1
        kernel = self._kernel(self.embeddings, self.embeddings)
        inside = (drawn * (kernel @ drawn)).sum(axis=0, dtype=np.float64)
        across = (drawn * kernel.sum(axis=1)[:, None]).sum(axis=0, dtype=np.float64) - inside
        outside = kernel.sum(dtype=np.float64) - inside - 2 * across
        others = count - size
        return np.asarray(inside / size**2 + outside / others**2 - 2 * across / (size * others))

    def _kernel(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(_squared(one, other) / -self._width))


def stability(values: np.ndarray, reference: np.ndarray) -> float:
    """The population stability index; an empty decile counts as half a value, so that the logarithm is finite."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    shares = []
    for sample in (values, reference):
        counts = np.bincount(np.searchsorted(edges, sample, side="left"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts, 0.5) / len(sample))
    served, expected = shares
    return float(((served - expected) * np.log(served / expected)).sum())


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, D), (M, D) → (N, M) squared distances."""
    norms = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    return np.asarray(np.maximum(norms - 2 * one @ other.T, 0))
