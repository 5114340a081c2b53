"""What a bundle reaches, measured on the bundle, through the code that serves it."""

from collections.abc import Collection
from dataclasses import dataclass
from math import exp, lgamma, sqrt

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Metric
from app.bundle.scoring import probabilities, reconstruction_errors
from training.data.imageset import ImageSet
from training.data.storage import allocate
from training.measure import components
from training.measure.clusters import k_means, normalised_mutual_information
from training.progress import track

_BATCH = 128  # what one request may hold
EVERYTHING = ("embedding", "logits", "errors", "scores")


@dataclass(frozen=True)
class Outputs:
    """Of every image of a set, in its order; what was not asked for, or cannot be had, is not there."""

    encoded: dict[str, np.ndarray]  # (N, D) of the encoder's tensors, and of the image's own
    logits: np.ndarray | None  # (N, labels)
    errors: np.ndarray | None  # (N,) of the reconstruction
    scores: np.ndarray | None  # (N,) of anomaly


def run(bundle: Bundle, data: ImageSet, what: str, wanted: Collection[str] = EVERYTHING) -> Outputs:
    """In batches as a request holds them; what is not wanted is not computed.

    `wanted` are tensors that anomaly distances take, and of `logits`, `errors` and `scores` those that the bundle
    can give.
    """
    found: dict[str, np.ndarray] = {}
    starts = range(0, len(data), _BATCH)
    for start in track(starts, what, len(starts)):
        images = data.images[start : start + _BATCH]
        for name, part in _batch(bundle, images, wanted).items():
            if name not in found:
                found[name] = allocate((len(data), *part.shape[1:]), part.dtype.type)
            found[name][start : start + len(part)] = part
    logits, errors, scores = (found.pop(name, None) for name in ("logits", "errors", "scores"))
    return Outputs(found, logits, errors, scores)


def _batch(bundle: Bundle, images: np.ndarray, wanted: Collection[str]) -> dict[str, np.ndarray]:
    encoded = bundle.encode(images)
    scorer = bundle.scorer if "scores" in wanted else None
    tensors = bundle.taken(images, encoded, {*wanted, *(scorer.tensors if scorer else ())})
    part = {name: values for name, values in tensors.items() if name in wanted}
    if bundle.head is not None and "logits" in wanted:
        part["logits"] = bundle.logits(encoded)
    errors = None
    if bundle.decoder is not None and ("errors" in wanted or (scorer is not None and scorer.reconstructs)):
        errors = reconstruction_errors(images, bundle.reconstruct(encoded))
    if errors is not None and "errors" in wanted:
        part["errors"] = errors
    if scorer is not None:
        part["scores"] = scorer.combine(scorer.distances(tensors, errors))
    return part


def accuracy(bundle: Bundle, data: ImageSet, what: str) -> float:
    logits = run(bundle, data, what, ("logits",)).logits
    assert logits is not None  # asked of a bundle with a head
    return float(np.mean(logits.argmax(axis=1) == data.labels))


def metrics(
    bundle: Bundle, data: ImageSet, part: str, outputs: Outputs | None = None, train: ImageSet | None = None
) -> list[Metric]:
    """As far as the bundle has the parts; with the training images, what principal components reach too."""
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
        raw = probabilities(outputs.logits, 1.0).max(axis=1)
        found["calibration_error_before_temperature"] = calibration_error(raw, right)
    if len(np.unique(data.labels)) > 1:
        clusters = k_means(outputs.encoded["embedding"], len(data.classes))
        found["cluster_nmi"] = normalised_mutual_information(data.labels, clusters)
    if outputs.errors is not None:
        found["reconstruction_mse"] = float(outputs.errors.mean())
        if train is not None:
            found["pca_mse"] = components.reconstruction_mse(train, data, bundle.manifest.latent_size)
    if outputs.scores is not None and bundle.manifest.anomaly is not None:
        found["false_alarm_rate"] = float(np.mean(outputs.scores > bundle.manifest.anomaly.threshold))
    return [Metric(name=name, value=value, images=len(data), how=how) for name, value in found.items()]


def false_alarm_interval(rate: float, calibrated_on: int, tested: int) -> tuple[float, float]:
    """Where 95 % of measured false-alarm rates fall if nothing is wrong: chance in both samples counted.

    The threshold is the k-th highest of n calibration scores, so that the alarms among m fresh normals are
    beta-binomial, with parameters k and n + 1 - k.
    """
    k, n, m = int(np.floor(rate * (calibrated_on + 1) + 1e-9)), calibrated_on, tested

    def log_beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    constant = lgamma(m + 1) - log_beta(k, n + 1 - k)
    total, low, high = 0.0, 0, m
    for alarms in range(m + 1):
        ways = constant - lgamma(alarms + 1) - lgamma(m - alarms + 1)
        total += exp(ways + log_beta(k + alarms, n + 1 - k + m - alarms))
        if total < 0.025:
            low = alarms + 1
        if total >= 0.975:
            high = alarms
            break
    return low / m, high / m


def share_interval(hits: int, trials: int) -> tuple[float, float]:
    """Where the share lies with 95 % confidence (Wilson 1927), if the trials are independent."""
    z = 1.96
    share, scale = hits / trials, 1 + z**2 / trials
    middle = (share + z**2 / (2 * trials)) / scale
    half = z * sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def confusion(labels: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts: a row for what an image is, a column for what it was taken for."""
    return np.bincount(labels * classes + found, minlength=classes**2).reshape(classes, classes)


def class_measures(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each class precision, recall, F1 and how many images it has."""
    hits, is_, taken = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return hits / np.maximum(taken, 1), hits / np.maximum(is_, 1), 2 * hits / np.maximum(is_ + taken, 1), is_


def class_table(counts: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Precision, recall, F1 and images of each class, and what it is most often mistaken for."""
    precision, recall, f1, is_ = class_measures(counts)
    width = max(map(len, classes))
    lines = [f"{'class':{width}}  precision  recall      F1   images  mostly mistaken for"]
    for i, name in enumerate(classes):
        others = np.where(np.arange(len(classes)) == i, 0, counts[i])
        rival = f"{classes[others.argmax()]} ({others.max():,})" if others.any() else "none"
        lines.append(f"{name:{width}}  {precision[i]:9.4f}  {recall[i]:.4f}  {f1[i]:.4f}  {is_[i]:7,}  {rival}")
    return lines


def confusion_table(counts: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Every count: a row for what an image is, a column for what it was taken for."""
    width = max(7, *(len(f"{count:,}") + 2 for count in counts.ravel()))
    names = max(map(len, classes))
    lines = [" " * names + "".join(f"{name[: width - 2]:>{width}}" for name in classes)]
    return lines + [
        f"{name:{names}}" + "".join(f"{count:{width},}" for count in row)
        for name, row in zip(classes, counts, strict=True)
    ]


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence| in equal-width bins of confidence, weighted by their size."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[which == b].mean() - confidence[which == b].mean()) * (which == b).mean() for b in np.unique(which)
    ]
    return float(sum(gaps))
