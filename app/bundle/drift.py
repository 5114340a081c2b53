"""Drift statistics: do images look like the held-out ones? Pure numpy, computed from graph outputs.

The bundle's reference file holds `drift.embeddings`, the embeddings of some held-out images, and `drift.confidences`
if the bundle has a classifier. Older bundles have neither. `drift.basis` (D, K) and `drift.scores` (n, 1 + K) are of
images that are new to the encoder: the scores of those that no score is measured from. Without them there is no
martingale.

    maximum mean discrepancy   of two sets of embeddings; the Gaussian kernel is as wide as the reference's median
                               distance. p-value: how often a random subset of the reference, of the same size, is as
                               far from the rest of it
    population stability       Σ (p - q) · ln(p / q) over the deciles of the reference's confidences or anomaly
                               scores. Below 0.1: unchanged; above 0.25: much changed
    scores for a martingale    the distance to the nearest of some references, as a multiple of what is usual among
                               these; and e to the power of the principal components, as multiples of their spread
"""

from functools import cached_property

import numpy as np

REFERENCES = 1000  # most embeddings in a reference
WINDOW = 400  # most images that are compared with it
FEWEST = 100  # fewest embeddings in a reference
EMBEDDINGS, CONFIDENCES = "drift.embeddings", "drift.confidences"
BASIS, SCORES = "drift.basis", "drift.scores"
COMPONENTS = 8  # most columns of a basis
_NEAREST = 128  # most references that distances are measured from
_MOST = 9.0  # times its spread, to which a component is cut: in half precision its power is still a number
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
        self.stream: StreamScores | None = None
        if BASIS in arrays:
            self.stream = StreamScores(self.embeddings, arrays[BASIS], arrays.get(SCORES))

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


class StreamScores:
    """Scores of embeddings, of which a martingale says whether they have left the held-out images."""

    def __init__(self, embeddings: np.ndarray, basis: np.ndarray, calibration: np.ndarray | None = None) -> None:
        """`embeddings` (R, D) of the reference; `calibration`: (n, 1 + K) of other images. Raises ValueError."""
        for name, array, shape in (
            (BASIS, basis, (embeddings.shape[1], basis.shape[-1])),
            (SCORES, calibration, (0 if calibration is None else len(calibration), 1 + basis.shape[-1])),
        ):
            if array is None and name == SCORES:
                continue
            if array is None or array.dtype.kind != "f" or array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"array {name}: must be finite floats of shape {shape}")
        near = embeddings[self.rows(len(embeddings))]
        self._mean = near.mean(axis=0)
        self._near = near - self._mean  # (M, D)
        self._norms = np.square(self._near).sum(axis=1)
        self._columns = np.concatenate([self._near, basis.T.astype(np.float32)]).T  # (D, M + K)
        apart = _squared(self._near, self._near)
        np.fill_diagonal(apart, np.inf)
        self._unit = float(np.sqrt(np.median(apart.min(axis=1)))) or 1.0
        self.calibration = calibration

    @staticmethod
    def rows(references: int) -> np.ndarray:
        """Which of so many references distances are measured from: spread, as they lie in the order of a folder."""
        return np.linspace(0, references - 1, min(_NEAREST, references // 2)).astype(int)

    @classmethod
    def basis_of(cls, embeddings: np.ndarray) -> np.ndarray:
        """(D, K): the principal directions of the references, each divided by the spread along it."""
        near = embeddings[cls.rows(len(embeddings))]
        _, spread, directions = np.linalg.svd(near - near.mean(axis=0), full_matrices=False)
        count = min(COMPONENTS, int((spread > 1e-6 * max(1e-30, spread[0])).sum()))
        return np.asarray(directions[:count].T / spread[:count] * np.sqrt(len(near)), np.float32)

    def of(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, D) → (N, 1 + K)"""
        x = embeddings - self._mean
        products = x @ self._columns
        count = len(self._near)
        squared = (self._norms - 2 * products[:, :count]).min(axis=1) + np.square(x).sum(axis=1)
        components = np.clip(products[:, count:], -_MOST, _MOST)
        distances = np.sqrt(np.maximum(squared, 0)) / self._unit
        return np.concatenate([distances[:, None], np.exp(components)], axis=1)


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
