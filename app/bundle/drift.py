"""Whether images look like those that the model was held to: pure numpy, on what the graphs gave.

The bundle's reference file holds `drift.embeddings`, the codes of some held-out images, and where there is a classifier
`drift.confidences`. Bundles of earlier days have neither.

    maximum mean discrepancy   of two sets of codes, with a Gaussian kernel as wide as the reference's median distance.
                               Its p-value: how often as many images drawn from the reference lie as far from the rest
    population stability       Σ (p - q) · ln(p / q) over the reference's tenths, of confidences or anomaly scores.
                               Below 0.1 nothing has moved, above 0.25 much has
"""

from functools import cached_property

import numpy as np

REFERENCES = 1000  # codes that are kept, at most
WINDOW = 400  # images that are compared with them, at most
FEWEST = 100  # codes without which there is nothing to compare with
EMBEDDINGS, CONFIDENCES = "drift.embeddings", "drift.confidences"
_DRAWS = 999
_BINS = 10


class DriftReference:
    def __init__(self, arrays: dict[str, np.ndarray], latent_size: int) -> None:
        """A ValueError names the array that does not fit."""
        codes, sure = arrays[EMBEDDINGS], arrays.get(CONFIDENCES)
        if codes.ndim != 2 or codes.shape[1] != latent_size or not FEWEST <= len(codes) <= REFERENCES:
            raise ValueError(f"array {EMBEDDINGS}: {FEWEST} to {REFERENCES} rows of {latent_size} numbers are expected")
        for name, array in ((EMBEDDINGS, codes), (CONFIDENCES, sure)):
            if array is not None and not (array.dtype.kind == "f" and array.size and np.isfinite(array).all()):
                raise ValueError(f"array {name}: finite numbers are expected")
        self.codes = codes.astype(np.float32)
        self.confidences = sure
        self.window = min(WINDOW, len(codes) // 2)

    def discrepancy(self, codes: np.ndarray) -> tuple[float, float]:
        """(`window`, D) → (its square, p-value). The first call takes a tenth of a second, for what chance gives."""
        within, across = self._kernel(codes, codes).mean(), self._kernel(codes, self.codes).mean()
        found = float(within + self._own.mean() - 2 * across)
        as_far = int((self._drawn >= found).sum())
        return found, (1 + as_far) / (1 + len(self._drawn))

    def by_chance(self, share: float) -> float:
        """The squared discrepancy that this share of as many references stays below."""
        return float(np.quantile(self._drawn, share))

    @cached_property
    def _own(self) -> np.ndarray:
        """Of each reference, the mean of its row of the kernel matrix."""
        return np.asarray(self._kernel(self.codes, self.codes).mean(axis=1))

    @cached_property
    def _width(self) -> float:
        """A pair's median squared distance; of codes that are mostly alike, the mean."""
        squared = _squared(self.codes, self.codes)[np.triu_indices(len(self.codes), 1)]
        return float(np.median(squared) or squared.mean() or 1.0)

    @cached_property
    def _drawn(self) -> np.ndarray:
        """Squared discrepancies of `window` references, drawn at random, from the others."""
        count, size, rng = len(self.codes), self.window, np.random.default_rng(0)
        drawn = np.zeros((count, _DRAWS), np.float32)
        for column in range(_DRAWS):
            drawn[rng.permutation(count)[:size], column] = 1
        kernel = self._kernel(self.codes, self.codes)
        inside = (drawn * (kernel @ drawn)).sum(axis=0, dtype=np.float64)
        across = (drawn * kernel.sum(axis=1)[:, None]).sum(axis=0, dtype=np.float64) - inside
        outside = kernel.sum(dtype=np.float64) - inside - 2 * across
        rest = count - size
        return np.asarray(inside / size**2 + outside / rest**2 - 2 * across / (size * rest))

    def _kernel(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(_squared(one, other) / -self._width))


def stability(values: np.ndarray, reference: np.ndarray) -> float:
    """The population stability index; an empty tenth counts as half a value."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    shares = []
    for each in (values, reference):
        counts = np.bincount(np.searchsorted(edges, each, side="left"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts, 0.5) / len(each))
    served, meant = shares
    return float(((served - meant) * np.log(served / meant)).sum())


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, D), (M, D) → (N, M) squared distances."""
    norms = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    return np.asarray(np.maximum(norms - 2 * one @ other.T, 0))
