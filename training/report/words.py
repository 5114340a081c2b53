"""What a bundle's metrics mean, in sentences."""

import numpy as np

from app.bundle import Manifest
from training.measure import intervals
from training.measure.detection import auroc
from training.measure.sets import COVERAGE


def in_words(manifest: Manifest, scores: dict[str, np.ndarray]) -> list[str]:
    """`scores` are anomaly scores, by what was scored: the test images, then those of another domain."""
    metrics = {metric.name: metric for metric in manifest.metrics}
    sentences = []
    if "accuracy" in metrics:
        metric = metrics["accuracy"]
        low, high = intervals.wilson(round(metric.value * metric.images), metric.images)
        sentences.append(
            f"Of {metric.images:,} test images {metric.value:.2%} are classified correctly (95 % interval "
            f"{low:.2%} to {high:.2%}). The stated confidence is off by "
            f"{metrics['calibration_error'].value:.1%} on average."
        )
    if "set_coverage" in metrics:
        metric, size = metrics["set_coverage"], metrics["set_size"].value
        sentences.append(
            f"Prediction sets that are to hold the truth for {COVERAGE:.0%} of images hold it for {metric.value:.2%} "
            f"of the test images, with {size:.2f} labels on average."
        )
    if "mean_average_precision" in metrics:
        metric = metrics["mean_average_precision"]
        sentences.append(
            f"Average precision is {metric.value:.2%}, the mean over labels, on {metric.images:,} test images. At the "
            f"labels' thresholds F1 is {metrics['micro_f1'].value:.2%} over all decisions, and "
            f"{metrics['macro_f1'].value:.2%} as the mean over labels. Of the images, "
            f"{metrics['all_labels_right'].value:.2%} are given exactly their labels. The stated probabilities are off "
            f"by {metrics['calibration_error'].value:.1%} on average."
        )
    if "teacher_accuracy" in metrics and "accuracy" in metrics:
        metric, kept = metrics["teacher_accuracy"], metrics["accuracy"].value
        share = f": the distilled network keeps {kept / metric.value:.1%} of that" if metric.value else ""
        sentences.append(f"The teacher, {metric.how}, classifies {metric.value:.2%} correctly{share}.")
    if "pca_mse" in metrics:
        ours, linear = metrics["reconstruction_mse"].value, metrics["pca_mse"].value
        verdict = "better than" if ours < linear else "no better than"
        sentences.append(
            f"The reconstruction ({ours:.5f} mean squared error) is {verdict} that of as many principal "
            f"components ({linear:.5f})."
        )
    if "nll_bound" in metrics:
        weighted, elbo = metrics["nll_bound"].value, metrics["negative_elbo"].value
        sentences.append(
            f"A test image costs at most {weighted:.1f} nats on average by the learnt distribution "
            f"({elbo:.1f} by the looser bound that training minimises)."
        )
    a = manifest.anomaly
    if a is not None and "false_alarm_rate" in metrics:
        metric = metrics["false_alarm_rate"]
        low, high = intervals.false_alarms(a.false_alarm_rate, a.calibrated_on, metric.images)
        inside = "as expected" if low <= metric.value <= high else "which chance does not explain: find out why"
        sentences.append(
            f"{metric.value:.2%} of normal test images are called anomalous, at a stated {a.false_alarm_rate:.2%}; "
            f"chance in {a.calibrated_on:,} calibration and {metric.images:,} test images alone gives "
            f"{low:.2%} to {high:.2%}, {inside}."
        )
    if "image_auroc" in metrics:
        metric = metrics["image_auroc"]
        sentences.append(
            f"Images with defects are separated from sound ones with an AUROC of {metric.value:.4f}, "
            f"and {metrics['recall_at_threshold'].value:.2%} of them are called anomalous."
        )
    if len(scores) == 2:
        normal, other = scores.values()
        sentences.append(
            f"Images of {manifest.provenance.source} are separated from normal ones with an AUROC of "
            f"{auroc(normal, other):.4f}."
        )
    return sentences
