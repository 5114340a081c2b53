"""Fitting an anomaly score on normals: its distances, and the threshold that held-out normals set. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Anomaly
from app.bundle.scoring import PATCHES, AnomalyScorer
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.measure.outputs import outputs_of
from training.score import thresholds
from training.score.distances import Normals, fit_distances, tensors
from training.score.distances import across as distances_across_one
from training.score.distances import fit_across as distances_across

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def fit(
    train: Normals,
    held_out: Normals,
    distances: Sequence[str],
    false_alarm_rate: float,
    blocks: Sequence[int] = (),
    anomalies: Normals | None = None,
) -> tuple[Anomaly, dict[str, np.ndarray]]:
    """(calibration, arrays of the reference file).

    The distances are fitted on `train`; the threshold comes from `held_out`, which nothing was fitted on. With
    `anomalies`, the false-alarm rate is not the given one but the one with the best F1 on them and on `held_out`.
    """
    stated, arrays = fit_distances(train, distances, blocks)
    # The threshold is found with the scorer that serves. It is built from a draft, with zeros for calibration scores.
    unscored = np.zeros(len(held_out))
    draft = Anomaly(
        distances=stated,
        false_alarm_rate=false_alarm_rate,
        threshold=0.0,
        calibrated_on=len(held_out),
        quantiles={},
    )
    sizes = {name: points.shape[1] for name, points in held_out.encoded.items()}  # of patches it is not read
    scorer = AnomalyScorer(draft, {**arrays, "calibration_scores": unscored}, sizes)
    scores = np.sort(scorer.combine(held_out.distances(scorer)))
    if anomalies is not None:
        false_alarm_rate = thresholds.best_rate(scores, scorer.combine(anomalies.distances(scorer)))
    threshold = thresholds.at_rate(scores, false_alarm_rate)
    calibrated = {
        "false_alarm_rate": false_alarm_rate,
        "threshold": threshold,
        "quantiles": _quantiles(scores),
    }
    return draft.model_copy(update=calibrated), {**arrays, "calibration_scores": scores}


@dataclass(frozen=True)
class Across:
    """A score without normals that were held out."""

    anomaly: Anomaly
    arrays: dict[str, np.ndarray]  # of the reference file
    scores: np.ndarray  # (N,) of each normal image, by the folds that do not hold it


def fit_across(
    normals: Normals,
    distances: Sequence[str],
    folds: np.ndarray | None,
    false_alarm_rate: float,
    *,
    blocks: Sequence[int] = (),
    raw: np.ndarray | None = None,
) -> Across:
    """As `fit`, without normals that are held out: scales and threshold come from each image's distances by the other
    folds, the arrays from all images. Distances by patches are those of `patches.across`; `raw` (N, distances) are
    those of networks that have not seen the images, where each fold has one.
    """
    stated, arrays, raw = distances_across(normals, distances, folds, blocks=blocks, raw=raw)
    mean, std = (np.array([getattr(each, name) for each in stated]) for name in ("mean", "std"))
    in_order = ((raw - mean) / std).sum(axis=1)
    scores = np.sort(in_order)
    made = Anomaly(
        distances=stated,
        false_alarm_rate=false_alarm_rate,
        threshold=thresholds.at_rate(scores, false_alarm_rate),
        calibrated_on=len(scores),
        quantiles=_quantiles(scores),
    )
    return Across(made, {**arrays, "calibration_scores": scores}, in_order)


def fit_bundle_across(
    bundle: Bundle,
    data: ImageSet,
    distances: Sequence[str],
    folds: np.ndarray | None,
    false_alarm_rate: float,
    *,
    patch_distances: np.ndarray | None = None,
    raw: np.ndarray | None = None,
) -> Across:
    """`fit_across` on the outputs of the bundle's own graphs; (N, 1) distances by patches are handed in."""
    normals = _normals(bundle, data, distances, patch_distances)
    return fit_across(normals, distances, folds, false_alarm_rate, blocks=_blocks(bundle), raw=raw)


def distances_of_held(bundle: Bundle, data: ImageSet, distances: Sequence[str], held: np.ndarray) -> np.ndarray:
    """(held images, distances) raw of those that are held out, (N,) bool, by what the others gave: for a bundle that
    has learnt from the others alone."""
    return distances_across_one(_normals(bundle, data, distances, None), distances, held, _blocks(bundle))


def _normals(bundle: Bundle, data: ImageSet, distances: Sequence[str], patch_distances: np.ndarray | None) -> Normals:
    _require_decoder(bundle, distances)
    wanted = _wanted(distances) - {PATCHES}
    outputs = outputs_of(bundle, data, "anomaly", wanted) if wanted else None
    encoded = {} if outputs is None else outputs.encoded
    if patch_distances is not None:
        encoded = {**encoded, PATCHES: patch_distances}
    return Normals(encoded, None if outputs is None else outputs.errors)


def fit_to_bundle(
    bundle: Bundle,
    train: ImageSet,
    held_out: ImageSet,
    distances: Sequence[str],
    false_alarm_rate: float,
    anomalies: ImageSet | None = None,
) -> tuple[Anomaly, dict[str, np.ndarray]]:
    """`fit` on the outputs of the bundle's own graphs."""
    _require_decoder(bundle, distances)
    wanted = _wanted(distances)

    def read(data: ImageSet) -> Normals:
        outputs = outputs_of(bundle, data, "anomaly", wanted)
        return Normals(outputs.encoded, outputs.errors)

    others = None if anomalies is None else read(anomalies)
    return fit(
        read(train),
        read(held_out),
        distances,
        false_alarm_rate=false_alarm_rate,
        blocks=_blocks(bundle),
        anomalies=others,
    )


def _require_decoder(bundle: Bundle, distances: Sequence[str]) -> None:
    if "reconstruction" in distances and bundle.decoder is None:
        raise TrainingError(
            f"{bundle.name}@{bundle.version} has no decoder: take reconstruction out of anomaly.distances"
        )


def _wanted(distances: Sequence[str]) -> set[str]:
    """The outputs of a bundle that the distances need."""
    return tensors(distances) | ({"errors"} if "reconstruction" in distances else set())


def _blocks(bundle: Bundle) -> list[int]:
    return [math.prod(each) for each in bundle.manifest.feature_maps]


def _quantiles(scores: np.ndarray) -> dict[str, float]:
    return {str(q): float(np.quantile(scores, q)) for q in _QUANTILES}
