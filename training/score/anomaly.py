"""Fitting an anomaly score on normals: where they lie, how far they stray, and the threshold. No torch."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle.manifest import Anomaly, Distance
from app.bundle.scoring import AnomalyScorer, References, Space, threshold_at
from training.data.arrays import Rows, chunks
from training.errors import TrainingError
from training.measure.components import main_directions
from training.recipe import parsed_distance, tensors

_RIDGE = 1e-3  # of the mean variance, added to every direction: flat ones would divide by nothing
_RANK = 64  # main directions that are kept of a tensor with more than _WIDE numbers; of others all are
_WIDE = 256
_REFERENCES = {"neighbours": 2000, "local": 10_000}  # normals that are kept to be near to; the most that is asked for
_LEAST_REACH = 1e-3  # of the mean: copies of an image have none, and would divide by nothing
_MOST_FOR_DIRECTIONS = 5000  # images from which the directions of a wide tensor are found
_VALUES_AT_A_TIME = 1 << 24  # of the widest tensor
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Normals:
    """Of each image what the graphs gave: (N, D) tensors by name, and the reconstruction's (N,) errors."""

    encoded: dict[str, np.ndarray]  # possibly larger than memory
    errors: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(self.encoded.values()))) if self.errors is None else len(self.errors)

    def parts(self) -> Iterator["Normals"]:
        """In order, as many at a time as are held easily, wherever the whole lies."""
        widest = max((points.shape[1] for points in self.encoded.values()), default=1)
        step = max(1, _VALUES_AT_A_TIME // widest)
        for start in range(0, len(self), step):
            part = slice(start, start + step)
            yield Normals(
                {name: points[part] for name, points in self.encoded.items()},
                None if self.errors is None else self.errors[part],
            )

    def distances(self, scorer: AnomalyScorer) -> np.ndarray:
        """(N, distances)."""
        return np.concatenate([scorer.distances(part.encoded, part.errors) for part in self.parts()])


def fit(
    train: Normals,
    held_out: Normals,
    distances: Sequence[str],
    false_alarm_rate: float,
    blocks: Sequence[int] = (),
    strange: Normals | None = None,
) -> tuple[Anomaly, dict[str, np.ndarray]]:
    """The calibration and its reference arrays.

    Directions and references come from four fifths of `train`, the distances' scales from the rest, the threshold from
    `held_out`, which nothing was fitted on. `blocks` are the sizes of the stages' parts of `features`: each part counts
    alike, however large its values. Where anomalies are at hand, `strange`, the rate is not the given one but that
    which has the best F1 on them and on `held_out`.
    """
    fifth = np.arange(len(train)) % 5 == 4
    fitted_on, scaled_on = np.flatnonzero(~fifth), np.flatnonzero(fifth)
    if not len(scaled_on):
        raise TrainingError(f"{len(train)} normals are too few to fit an anomaly score on")
    arrays: dict[str, np.ndarray] = {}
    raw: dict[tuple[str, str], np.ndarray] = {}
    for tensor in sorted(tensors(distances)):
        measures = {measure for takes, measure in map(parsed_distance, distances) if takes == tensor}
        points = train.encoded[tensor]
        space = _space(Rows(points, fitted_on), measures, tensor, blocks if tensor == "features" else ())
        arrays |= {f"{tensor}.{name}": array for name, array in space.items()}
        found = [Space(space).distances(part, measures) for part in chunks(Rows(points, scaled_on))]
        raw |= {(tensor, measure): np.concatenate([part[measure] for part in found]) for measure in measures}
    if train.errors is not None:
        raw["pixels", "reconstruction"] = train.errors[scaled_on]
    stated = tuple(_scaled(takes, measure, raw[takes, measure]) for takes, measure in map(parsed_distance, distances))

    # The threshold is found with the scorer that serves; what it needs to be made is put in its place first.
    unscored = np.zeros(len(held_out))
    draft = Anomaly(
        distances=stated,
        false_alarm_rate=false_alarm_rate,
        threshold=0.0,
        calibrated_on=len(held_out),
        quantiles={},
    )
    sizes = {name: points.shape[1] for name, points in held_out.encoded.items()}
    scorer = AnomalyScorer(draft, {**arrays, "calibration_scores": unscored}, sizes)
    scores = np.sort(scorer.combine(held_out.distances(scorer)))
    if strange is not None:
        false_alarm_rate = best_rate(scores, scorer.combine(strange.distances(scorer)))
    try:
        threshold = threshold_at(scores, false_alarm_rate)
    except ValueError as error:
        raise TrainingError(f"{error}; hold out more, or allow more false alarms") from None
    quantiles = {str(q): float(np.quantile(scores, q)) for q in _QUANTILES}
    calibrated = {"false_alarm_rate": false_alarm_rate, "threshold": threshold, "quantiles": quantiles}
    return draft.model_copy(update=calibrated), {**arrays, "calibration_scores": scores}


def best_rate(normal: np.ndarray, strange: np.ndarray) -> float:
    """The false-alarm rate whose threshold has the best F1; `normal` are sorted calibration scores, rising.

    A rate of (a + 1) / (n + 1) puts the threshold where a of the n normals lie above it.
    """
    allowed = np.arange(len(normal) - 1)
    thresholds = normal[::-1][allowed]
    false = len(normal) - np.searchsorted(normal, thresholds, side="right")
    hits = len(strange) - np.searchsorted(np.sort(strange), thresholds, side="right")
    f1 = 2 * hits / (hits + false + len(strange))
    return float((allowed[f1.argmax()] + 1) / (len(normal) + 1))


def _scaled(takes: str, measure: str, values: np.ndarray) -> Distance:
    std = float(values.std())
    if not std > 1e-12:
        raise TrainingError(
            f"the normals all have the same {measure} distance: an anomaly score without variance tells nothing"
        )
    return Distance(measure=measure, takes=takes, mean=float(values.mean()), std=std)  # type: ignore[arg-type]


def _space(points: Rows, measures: set[str], tensor: str, blocks: Sequence[int]) -> dict[str, np.ndarray]:
    """`points` (N, D) → the arrays of app.bundle.scoring.Space that the measures need."""
    rng = np.random.default_rng(0)
    total = np.zeros(points.shape[1])
    for some in chunks(points):
        total += some.sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise TrainingError(f"the normals' {tensor} is not finite: the network diverged; train it at a lower rate")
    mean = (total / len(points)).astype(np.float32)
    centred = points[np.sort(rng.permutation(len(points))[:_MOST_FOR_DIRECTIONS])] - mean
    weight = np.ones(points.shape[1], np.float32)
    whole = (points.shape[1],)
    for end, size in zip(np.cumsum(blocks or whole), blocks or whole, strict=True):
        part = slice(end - size, end)
        spread = float(np.sqrt(np.square(centred[:, part]).mean(dtype=np.float64)))
        weight[part] = 1 / (max(spread, 1e-6) * np.sqrt(size))
    centred *= weight
    if not np.square(centred).mean(dtype=np.float64) > 1e-12:
        raise TrainingError(f"the normals' {tensor} has no variance: the images are all alike, or the encoder is dead")
    size = points.shape[1]
    kept = _RANK if size > _WIDE else size // 2 or 1 if "residual" in measures else size  # of all, nothing would remain
    values, basis = main_directions(centred, min(kept, *centred.shape))
    # Half precision is what the file holds; it is rounded here, so that the threshold is that of the rounded score.
    arrays = {"mean": mean, "weight": weight, "basis": basis.astype(np.float16)}
    if "mahalanobis" in measures:
        arrays["spread"] = np.sqrt(np.maximum(values, 0) + _RIDGE * values.mean()).astype(np.float32)
    if kept := max((count for measure, count in _REFERENCES.items() if measure in measures), default=0):
        chosen = np.sort(rng.permutation(len(points))[:kept])
        rounded = arrays["basis"].astype(np.float32)  # as queries are projected too
        arrays["references"] = (((points[chosen] - mean) * weight) @ rounded).astype(np.float16)
    if "local" in measures:
        reach = References(arrays["references"].astype(np.float32)).reach()
        arrays["reach"] = np.maximum(reach, _LEAST_REACH * reach.mean())
    return arrays


def to_file(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def added(file: bytes, arrays: dict[str, np.ndarray]) -> bytes:
    """A reference file with more arrays in it."""
    with np.load(io.BytesIO(file), allow_pickle=False) as stored:
        return to_file({**stored, **arrays})
