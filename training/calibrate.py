"""Temperature and anomaly threshold, from held-out images. Works where torch is not installed."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.bundle import Bundle, load, save
from app.bundle.manifest import Anomaly, Manifest, Scale
from app.bundle.scoring import combine, mahalanobis, probabilities, reconstruction_errors, threshold_at
from training import evaluate
from training.data import ImageSet
from training.errors import TrainingError
from training.splits import split

REFERENCE_FILE, CARD_FILE = "reference.npz", "card.md"
_ANOMALY_METRICS = frozenset({"false_alarm_rate"})  # which a new calibration makes untrue
_RIDGE = 1e-3  # of the mean variance, added to every direction: flat ones would divide by nothing
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What the logits must be divided by for the least negative log-likelihood; found by golden section on its log."""

    def loss(log_t: float) -> float:
        chances = probabilities(logits, float(np.exp(log_t)))
        return float(-np.log(chances[np.arange(len(labels)), labels] + 1e-300).mean())

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def anomaly(
    fitted_on: tuple[np.ndarray, np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray],
    takes: Literal["embedding", "features"],
    false_alarm_rate: float,
) -> tuple[Anomaly, dict[str, np.ndarray]]:
    """The calibration and its reference arrays, from normals: (images, points, reconstructions) of each set.

    Means and variances come from `fitted_on`, the threshold from `held_out`, which nothing was fitted on.
    """
    images, points, reconstructions = fitted_on
    mean = points.mean(axis=0, dtype=np.float64)
    covariance = np.atleast_2d(np.cov(points, rowvar=False, dtype=np.float64))
    spread = float(np.trace(covariance)) / len(covariance)
    if not spread > 0:
        raise TrainingError("the normals' codes have no variance: the images are all alike, or the encoder is dead")
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(np.maximum(values, 0) + _RIDGE * spread)
    reference = {"mean": mean.astype(np.float32), "whitening": whitening.astype(np.float32)}

    errors = reconstruction_errors(images, reconstructions)
    distances = mahalanobis(points, reference["mean"], reference["whitening"])
    scales = [Scale(mean=float(part.mean()), std=_spread(part)) for part in (errors, distances)]

    images, points, reconstructions = held_out
    errors = reconstruction_errors(images, reconstructions)
    distances = mahalanobis(points, reference["mean"], reference["whitening"])
    scores = np.sort(combine(errors, distances, *scales))
    reference["calibration_scores"] = scores
    try:
        threshold = threshold_at(scores, false_alarm_rate)
    except ValueError as error:
        raise TrainingError(f"{error}; hold out more, or allow more false alarms") from None
    calibration = Anomaly(
        definition="reconstruction+mahalanobis",
        takes=takes,
        reconstruction=scales[0],
        latent=scales[1],
        false_alarm_rate=false_alarm_rate,
        threshold=threshold,
        calibrated_on=len(scores),
        quantiles={str(q): float(np.quantile(scores, q)) for q in _QUANTILES},
    )
    return calibration, reference


def _spread(part: np.ndarray) -> float:
    std = float(part.std())
    if not std > 0:
        raise TrainingError("the normals all score alike: an anomaly score without variance tells nothing")
    return std


def anomaly_part(
    bundle: Bundle, fitted_on: ImageSet, held_out: ImageSet, false_alarm_rate: float
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(manifest fields, files) of an anomaly score on what the bundle's own graphs give."""
    normals = []
    for data in (fitted_on, held_out):
        outputs = evaluate.run(bundle, data, "anomaly")
        if outputs.reconstructions is None:
            raise TrainingError(f"{bundle.name}@{bundle.version} has no decoder: an anomaly score needs one")
        normals.append((data.images, outputs.encoded["embedding"], outputs.reconstructions))
    calibration, reference = anomaly(normals[0], normals[1], "embedding", false_alarm_rate)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **reference)
    return {"anomaly": calibration, "reference": REFERENCE_FILE}, {REFERENCE_FILE: buffer.getvalue()}


def recalibrate(folder: Path, normals: ImageSet, false_alarm_rate: float, seed: int) -> Path:
    """A new version of the bundle in `folder`: the anomaly score fitted on half of the normals, calibrated on the rest.

    Graphs, labels and temperature stay as they are.
    """
    bundle = load(folder)
    fitted_on, held_out = split(normals, (len(normals) // 2,), seed)
    fields, files = anomaly_part(bundle, fitted_on, held_out, false_alarm_rate)
    made_anew = ("golden", "files", "seal")
    before = {field: getattr(bundle.manifest, field) for field in Manifest.model_fields if field not in made_anew}
    kept = {
        name for name in bundle.manifest.files if name not in (bundle.manifest.golden.file, bundle.manifest.reference)
    }
    metrics = tuple(metric for metric in before["metrics"] if metric.name not in _ANOMALY_METRICS)
    data = {**before["provenance"].data, "calibration/normals": normals.fingerprint()}
    fields |= {"metrics": metrics, "provenance": before["provenance"].model_copy(update={"data": data})}
    files |= {name: (folder / name).read_bytes() for name in kept}
    if CARD_FILE in files:
        kept_lines = [
            line
            for line in files[CARD_FILE].decode().splitlines()
            if not line.startswith((*(f"| {name} |" for name in _ANOMALY_METRICS), "An image is called anomalous"))
        ]
        note = (
            f"The anomaly score was fitted and calibrated anew, from version {bundle.version}, on {len(normals):,} "
            f"normal images from elsewhere; it calls {false_alarm_rate:.1%} of such images anomalous."
        )
        files[CARD_FILE] = "\n".join([*kept_lines, "", note, ""]).encode()
    tolerances = bundle.manifest.golden.outputs
    return save(folder.parent.parent, bundle.name, before | fields, files, tolerances=tolerances)
