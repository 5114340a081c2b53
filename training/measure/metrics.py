"""Metrics of a bundle, measured on the exported graphs through the code that serves them."""

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Manifest, Metric
from app.bundle.scoring import label_probabilities, probabilities, sigmoid, threshold_at
from app.bundle.sets import SetOptions
from training.data.imageset import ImageSet
from training.measure import components, defects, drawn_domains, sets
from training.measure.clusters import k_means, normalised_mutual_information
from training.measure.defects import Defects
from training.measure.maps import highest, maps_of
from training.measure.outputs import Outputs, outputs_of
from training.measure.several import LabelMeasures, share_right
from training.measure.tiled import Maps


def accuracy(bundle: Bundle, data: ImageSet, label: str) -> float:
    logits = outputs_of(bundle, data, label, ("logits",)).logits
    """Where an image may have several labels, the share of decisions that are right, at a half."""
    assert logits is not None  # the bundle has a head
    return share_right(logits, data)


def test_part(test: ImageSet, manifest: Manifest) -> str:
    """What metrics call the images that they are measured on."""
    return f"all {len(test):,} test images of {manifest.provenance.target}"


def measured_labels(bundle: Bundle, data: ImageSet, outputs: Outputs) -> LabelMeasures | None:
    """Of labels of which an image may have several, at the bundle's thresholds or as the outputs say."""
    classifier = bundle.manifest.classifier
    if outputs.logits is None or classifier is None or classifier.thresholds is None or data.several is None:
        return None
    rows = label_probabilities(outputs.logits, classifier)
    return LabelMeasures.of(rows, data.several, classifier.labels, classifier.thresholds, given=outputs.given)


def bundle_metrics(
    bundle: Bundle,
    data: ImageSet,
    part: str,
    outputs: Outputs | None = None,
    train: ImageSet | None = None,
    found: Defects | None = None,
) -> list[Metric]:
    """Those that the bundle's parts allow; with the training images, the error of principal components too.

    Where some images have defects, the others alone are the normal ones; `found` is what was measured of the defects.
    """
    outputs = outputs or outputs_of(bundle, data, f"evaluate {bundle.name}")
    if not data.defective.any():
        return _of_normals(bundle, data, part, outputs=outputs, train=train)
    sound = np.flatnonzero(~data.defective)
    found = found or defects.measure(bundle, data, outputs.scores)
    made = []
    if len(sound):
        own, maps = f"{part}, the {len(sound):,} sound ones", None if found is None else found.maps_at(sound)
        made = _of_normals(bundle, data.take(sound), own, outputs=outputs.take(sound), train=train, maps=maps)
    if found is not None and bundle.manifest.anomaly is not None:
        how = f"exported bundle through app.bundle, {part}"
        made += defects.metrics(found, how, bundle.manifest.anomaly.false_alarm_rate)
    return made


def _of_normals(
    bundle: Bundle,
    data: ImageSet,
    part: str,
    outputs: Outputs,
    train: ImageSet | None,
    maps: np.ndarray | Maps | None = None,
) -> list[Metric]:
    """`maps` (N, H, W) are the images', where they were made before."""
    how = f"exported bundle through app.bundle, {part}"
    found: dict[str, float] = {}
    labelled = len(data.labels) and data.sound is None
    if outputs.logits is not None and bundle.manifest.classifier is not None and labelled:
        chances = label_probabilities(outputs.logits, bundle.manifest.classifier)
        right = chances.argmax(axis=1) == data.labels
        found["accuracy"] = float(right.mean())
        found["balanced_accuracy"] = float(
            np.mean([right[data.labels == label].mean() for label in np.unique(data.labels)])
        )
        found["calibration_error"] = calibration_error(chances.max(axis=1), right)
        raw = probabilities(outputs.logits, 1.0).max(axis=1)
        found["calibration_error_before_temperature"] = calibration_error(raw, right)
    of_labels = measured_labels(bundle, data, outputs)
    if of_labels is not None and outputs.logits is not None and bundle.manifest.classifier is not None:
        how += f"; no image has {', '.join(of_labels.lacking)}" if of_labels.lacking else ""
        found |= {
            "mean_average_precision": of_labels.mean_average_precision,
            "micro_f1": of_labels.micro_f1,
            "macro_f1": of_labels.macro_f1,
            "all_labels_right": of_labels.exact,
        }
        for name, temperature in (
            ("calibration_error", bundle.manifest.classifier.temperature),
            ("calibration_error_before_temperature", 1.0),
        ):
            chances = sigmoid(outputs.logits, temperature).ravel()
            found[name] = calibration_error(chances, data.several.ravel())  # type: ignore[union-attr]
    if len(np.unique(data.labels)) > 1:
        clusters = k_means(outputs.encoded["embedding"], len(data.classes))
        found["cluster_nmi"] = normalised_mutual_information(data.labels, clusters)
    if outputs.errors is not None:
        found["reconstruction_mse"] = float(outputs.errors.mean())
        if train is not None:
            found["pca_mse"] = components.reconstruction_mse(train, data, bundle.manifest.latent_size)
    if outputs.scores is not None and bundle.manifest.anomaly is not None:
        found["false_alarm_rate"] = float(np.mean(outputs.scores > bundle.manifest.anomaly.threshold))
    made = [Metric(name=name, value=value, images=len(data), how=how) for name, value in found.items()]
    made += of_sets(bundle, data, outputs, how) if labelled else []
    if outputs.scores is not None:
        made.append(_out_of_distribution(bundle, outputs.scores, how))
    if bundle.peaks is not None and bundle.manifest.anomaly is not None:
        maps = maps_of(bundle, data, "regions") if maps is None else maps
        threshold = threshold_at(bundle.peaks, bundle.manifest.anomaly.false_alarm_rate)
        share = float(np.mean(highest(maps) > threshold))
        how = f"{how}; the share with any region"
        made.append(Metric(name="false_region_rate", value=share, images=len(data), how=how))
    return made


OF_SETS = ("set_coverage", "set_size")


def of_sets(bundle: Bundle, data: ImageSet, outputs: Outputs, how: str) -> list[Metric]:
    measured = sets.measure(bundle, data, outputs, SetOptions(sets.COVERAGE))
    if measured is None:
        return []
    how = f"{how}; sets at a coverage of {sets.COVERAGE:g}, {measured.calibrated_on.sum():,} calibration images"
    covered = Metric(name="set_coverage", value=float(measured.covered.mean()), images=len(data), how=how)
    return [covered, Metric(name="set_size", value=float(measured.sizes.mean()), images=len(data), how=how)]


def _out_of_distribution(bundle: Bundle, normal: np.ndarray, how: str) -> Metric:
    """The lowest AUROC over domains that no choice has seen; `normal` (N,) are the scores of the measured images."""
    areas = drawn_domains.aurocs(bundle, normal)
    domains = " and ".join(f"{name} ({area:.4f})" for name, area in areas.items())
    return Metric(
        name="out_of_distribution_auroc",
        value=min(areas.values()),
        images=len(normal) + len(areas) * drawn_domains.COUNT,
        how=f"{how}, against {domains}; the worst counts",
    )


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts: a row per true class, a column per predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_measures(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(precision, recall, F1, images) of each class."""
    hits, images, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    f1 = 2 * hits / np.maximum(images + predicted, 1)
    return hits / np.maximum(predicted, 1), hits / np.maximum(images, 1), f1, images


def class_table(counts: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Precision, recall, F1 and images of each class, and the class it is most often mistaken for."""
    precision, recall, f1, images = class_measures(counts)
    width = max(map(len, classes))
    lines = [f"{'class':{width}}  precision  recall      F1   images  mostly mistaken for"]
    for i, name in enumerate(classes):
        others = np.where(np.arange(len(classes)) == i, 0, counts[i])
        rival = f"{classes[others.argmax()]} ({others.max():,})" if others.any() else "none"
        lines.append(f"{name:{width}}  {precision[i]:9.4f}  {recall[i]:.4f}  {f1[i]:.4f}  {images[i]:7,}  {rival}")
    return lines


def confusion_table(counts: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """The confusion matrix as text: a row per true class, a column per predicted class."""
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
