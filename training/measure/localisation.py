"""How well maps point at defects: pixel AUROC, and the area under the per-region overlap (AUPRO), with intervals.

Overlap is averaged over regions, so that a small defect counts as much as a large one; it is integrated up to a rate of
false positives among sound pixels, and divided by that rate: 1 is perfect. (Bergmann et al., "MVTec AD", 2019.)

Pixels are counted in bins between thresholds that are the same for all images: quantiles of sound pixels, many of them
of the highest few per cent, and quantiles of defective pixels. Where there are few values, each has a bin of its own.
"""

from dataclasses import dataclass, fields

import numpy as np

from app.bundle import InputSpec
from training.data import masks
from training.data.imageset import ImageSet
from training.data.storage import allocate
from training.measure.detection import RESAMPLED, Measured, resampled, with_interval
from training.measure.tiled import Maps
from training.progress import track

LIMITS = (0.30, 0.05)  # rates of false positives up to which the overlap is integrated
_SAMPLED = 1 << 22  # pixels by which thresholds are chosen
_THRESHOLDS = 1500  # of each kind
_LEAST = 1e-9  # of a sample without a sound pixel


@dataclass(frozen=True)
class Overlaps:
    """Counts per image whose mask is known, by bin, from the highest values of the map down; (images, bins)."""

    index: np.ndarray  # (images,) which of the set they are
    sound: np.ndarray  # pixels beside defects
    defective: np.ndarray  # pixels of defects
    overlap: np.ndarray  # sum over the image's regions of the share of their pixels
    regions: np.ndarray  # (images,)

    def of(self, chosen: np.ndarray) -> "Overlaps":
        """Those of the images that `chosen`, (N,) bool of the set, has."""
        rows = chosen[self.index]
        return Overlaps(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def can_be_measured(self) -> bool:
        return bool(self.regions.any() and self.sound.any())


def overlaps(data: ImageSet, maps: np.ndarray | Maps, spec: InputSpec) -> Overlaps:
    """`maps` (N, H, W); the bars of pad are not counted."""
    known = np.flatnonzero(masks.are_known(data))
    edges = _edges(data, maps, known, spec)
    bins = len(edges) + 1
    sound, defective, overlap = (allocate((len(known), bins), np.float32) for _ in range(3))
    regions = np.zeros(len(known), np.int64)
    for row, index in enumerate(track(known, "pixels", len(known))):
        numbers, counted = masks.placed(data, int(index), spec)
        mask = numbers > 0
        at = bins - 1 - np.searchsorted(edges, np.asarray(maps[int(index)]), side="right")  # (H, W): the highest first
        sound[row] = np.bincount(at[counted & ~mask], minlength=bins)
        defective[row], overlap[row] = np.bincount(at[mask], minlength=bins), 0
        if mask.any():
            _, region, area = np.unique(numbers[mask], return_inverse=True, return_counts=True)
            overlap[row] = np.bincount(at[mask], weights=1 / area[region], minlength=bins)
            regions[row] = len(area)
    return Overlaps(known, sound=sound, defective=defective, overlap=overlap, regions=regions)


def measures(counts: Overlaps, seed: int = 0) -> dict[str, Measured]:
    """Pixel AUROC and AUPRO to each limit; the intervals are of bootstrap samples of images."""
    arrays = (counts.sound, counts.defective, counts.overlap)
    values = _areas(*(array.sum(axis=0, dtype=np.float64)[None] for array in arrays))
    rng, defective = np.random.default_rng(seed), counts.regions > 0
    weights = np.zeros((RESAMPLED, len(counts.index)), np.float32)
    for part in (np.flatnonzero(defective), np.flatnonzero(~defective)):  # each sample has both
        if len(part):
            weights[:, part] = resampled(rng, len(part), RESAMPLED)
    samples = _areas(*(weights @ array for array in arrays))
    return {name: with_interval(float(value[0]), samples[name]) for name, value in values.items()}


def _areas(sound: np.ndarray, defective: np.ndarray, overlap: np.ndarray) -> dict[str, np.ndarray]:
    """(samples, bins) sums over images → (samples,) of each measure."""
    totals = (np.cumsum(each, axis=1, dtype=np.float64) for each in (sound, defective, overlap))
    x, true, of_regions = (  # (samples, bins + 1), each from 0 to 1
        np.pad(total / np.maximum(total[:, -1:], _LEAST), ((0, 0), (1, 0))) for total in totals
    )
    found = {"pixel_auroc": _area(x, true, 1.0)}
    return found | {f"aupro_{limit * 100:.0f}": _area(x, of_regions, limit) / limit for limit in LIMITS}


def _area(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """(samples, points) → (samples,): the area under the lines through the points, from 0 to `limit`."""
    width = np.diff(x)
    inside = np.clip((limit - x[:, :-1]) / np.where(width > 0, width, 1), 0, 1)  # share of each step that is inside
    end = y[:, :-1] + inside * np.diff(y)
    return np.asarray((width * inside * (y[:, :-1] + end) / 2).sum(axis=1))


def _edges(data: ImageSet, maps: np.ndarray | Maps, known: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Ascending thresholds: all values that occur, or quantiles where they are many."""
    rng, each = np.random.default_rng(0), max(1, _SAMPLED // max(1, len(known)))
    sound: list[np.ndarray] = []
    defective: list[np.ndarray] = []
    for index in known:
        numbers, counted = masks.placed(data, int(index), spec)
        for pixels, values in ((counted & (numbers == 0), sound), (numbers > 0, defective)):
            own = np.asarray(maps[int(index)])[pixels]
            values.append(own if len(own) <= each else rng.choice(own, each, replace=False))
    rates = np.concatenate([np.linspace(0, 1, _THRESHOLDS), np.geomspace(1e-6, 1, _THRESHOLDS)])
    found = []
    for values, at in ((sound, 1 - rates), (defective, np.linspace(0, 1, _THRESHOLDS))):
        joined = np.concatenate(values) if values else np.array([], np.float32)
        distinct = np.unique(joined)
        found.append(distinct if len(distinct) <= len(at) else np.quantile(joined, at, method="nearest"))
    return np.unique(np.concatenate(found))
