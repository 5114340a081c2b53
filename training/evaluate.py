"""What a bundle reaches, measured on the bundle, through the code that serves it."""

from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Metric
from app.bundle.scoring import probabilities, reconstruction_errors
from training.data import ImageSet
from training.progress import track

_BATCH = 128  # what one request may hold


@dataclass(frozen=True)
class Outputs:
    """Of every image of a set, in its order."""

    encoded: dict[str, np.ndarray]
    logits: np.ndarray | None
    reconstructions: np.ndarray | None


def run(bundle: Bundle, data: ImageSet, what: str) -> Outputs:
    parts: list[dict[str, np.ndarray]] = []
    starts = range(0, len(data), _BATCH)
    for start in track(starts, what, len(starts)):
        encoded = bundle.encode(data.images[start : start + _BATCH])
        part = dict(encoded)
        if bundle.head is not None:
            part["=logits"] = bundle.logits(encoded)
        if bundle.decoder is not None:
            part["=reconstructions"] = bundle.reconstruct(encoded)
        parts.append(part)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    logits, reconstructions = joined.pop("=logits", None), joined.pop("=reconstructions", None)
    return Outputs(joined, logits, reconstructions)


def metrics(bundle: Bundle, data: ImageSet, part: str, outputs: Outputs | None = None) -> list[Metric]:
    """Accuracy, calibration error, reconstruction error and false alarms, as far as the bundle has the parts."""
    outputs = outputs or run(bundle, data, f"evaluate {bundle.name}")
    how = f"exported bundle through app.bundle, {part}"
    found: dict[str, float] = {}
    if outputs.logits is not None and bundle.manifest.classifier is not None and len(data.labels):
        chances = probabilities(outputs.logits, bundle.manifest.classifier.temperature)
        right = chances.argmax(axis=1) == data.labels
        found["accuracy"] = float(right.mean())
        found["balanced_accuracy"] = float(
            np.mean([right[data.labels == label].mean() for label in np.unique(data.labels)])
        )
        found["calibration_error"] = calibration_error(chances.max(axis=1), right)
    if outputs.reconstructions is not None:
        found["reconstruction_mse"] = float(reconstruction_errors(data.images, outputs.reconstructions).mean())
        if bundle.scorer is not None:
            scores = bundle.scorer.score(data.images, outputs.encoded[bundle.scorer.takes], outputs.reconstructions)
            found["false_alarm_rate"] = float(np.mean([score.anomalous for score in scores]))
    return [Metric(name=name, value=value, images=len(data), how=how) for name, value in found.items()]


def confusion(labels: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts: a row for what an image is, a column for what it was taken for."""
    return np.bincount(labels * classes + found, minlength=classes**2).reshape(classes, classes)


def class_table(counts: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Precision, recall, F1 and images of each class, and what it is most often mistaken for."""
    hits, is_, taken = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    precision, recall = hits / np.maximum(taken, 1), hits / np.maximum(is_, 1)
    f1 = 2 * hits / np.maximum(is_ + taken, 1)
    width = max(map(len, classes))
    lines = [f"{'class':{width}}  precision  recall      F1   images  mostly mistaken for"]
    for i, name in enumerate(classes):
        others = np.where(np.arange(len(classes)) == i, 0, counts[i])
        rival = f"{classes[others.argmax()]} ({others.max():,})" if others.any() else "none"
        lines.append(f"{name:{width}}  {precision[i]:9.4f}  {recall[i]:.4f}  {f1[i]:.4f}  {is_[i]:7,}  {rival}")
    return lines


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence| in equal-width bins of confidence, weighted by their size."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[which == b].mean() - confidence[which == b].mean()) * (which == b).mean() for b in np.unique(which)
    ]
    return float(sum(gaps))
