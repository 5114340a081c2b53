"""What a bundle's metrics mean, in sentences."""

import numpy as np

from app.bundle import Manifest
from training.measure import evaluate
from training.measure.detection import auroc


def sentences(manifest: Manifest, scores: dict[str, np.ndarray]) -> list[str]:
    """`scores` are anomaly scores, by what was scored: the test images, then those of another domain."""
    found = {metric.name: metric for metric in manifest.metrics}
    said = []
    if "accuracy" in found:
        metric = found["accuracy"]
        low, high = evaluate.share_interval(round(metric.value * metric.images), metric.images)
        said.append(
            f"Of {metric.images:,} test images {metric.value:.2%} are named rightly (95 % interval "
            f"{low:.2%} to {high:.2%}). The confidence that it states is off by "
            f"{found['calibration_error'].value:.1%} on average."
        )
    if "pca_mse" in found:
        ours, linear = found["reconstruction_mse"].value, found["pca_mse"].value
        verdict = "better than" if ours < linear else "no better than"
        said.append(
            f"The reconstruction ({ours:.5f} mean squared error) is {verdict} that of as many principal "
            f"components ({linear:.5f})."
        )
    if "nll_bound" in found:
        weighted, elbo = found["nll_bound"].value, found["negative_elbo"].value
        said.append(
            f"A test image costs at most {weighted:.1f} nats on average by the distribution that was learnt "
            f"({elbo:.1f} by the looser bound that training minimises)."
        )
    a = manifest.anomaly
    if a is not None and "false_alarm_rate" in found:
        metric = found["false_alarm_rate"]
        low, high = evaluate.false_alarm_interval(a.false_alarm_rate, a.calibrated_on, metric.images)
        inside = "as it should be" if low <= metric.value <= high else "which chance does not explain: look into it"
        said.append(
            f"{metric.value:.2%} of normal test images are called anomalous, at a stated {a.false_alarm_rate:.2%}; "
            f"chance in {a.calibrated_on:,} calibration and {metric.images:,} test images alone gives "
            f"{low:.2%} to {high:.2%}, {inside}."
        )
    if len(scores) == 2:
        normal, strange = scores.values()
        said.append(
            f"Images of {manifest.provenance.source} are told from normal ones with an AUROC of "
            f"{auroc(normal, strange):.4f}."
        )
    return said
