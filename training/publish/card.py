"""card.md: what a bundle is, what it was trained on, and what it reaches, for a person to read."""

from app.bundle import Manifest
from app.bundle.manifest import Classifier, Metric


def card(manifest: Manifest, validated: str, minutes: float, machine: str) -> str:
    rows = [f"| {metric.name} | {metric.value:.4f} | {metric.images:,} | {metric.how} |" for metric in manifest.metrics]
    height, width, channels = manifest.input.shape
    p = manifest.provenance
    lines = [
        f"# {manifest.title}",
        "",
        f"Trained on {p.source}, grafted onto {p.target}. Takes images of {width}×{height} pixels, "
        f"{'grey' if channels == 1 else 'colour'}; larger and smaller ones are brought to that. "
        f"Its code has {manifest.latent_size} numbers.",
        "",
        "| measure | value | images | how |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]
    if manifest.classifier:
        lines += [
            f"Labels: {', '.join(manifest.classifier.labels)}. Logits are divided by a temperature of "
            f"{manifest.classifier.temperature:.3f}, fitted on {validated}.",
            "",
        ]
    if manifest.anomaly:
        a = manifest.anomaly
        lines += [
            f"An image is called anomalous above a score of {a.threshold:.3f}: {a.false_alarm_rate:.2%} of normal "
            f"images are, by {a.calibrated_on:,} held-out ones that nothing was fitted on.",
            "",
        ]
    versions = ", ".join(f"{name} {number}" for name, number in p.versions.items())
    lines += [
        f"Made by `graft-train run` with the recipe in manifest.json, seed {p.seed}, in {minutes:.1f} minutes on "
        f"{machine}; "
        f"opset {p.opset}, {versions}, source at {p.commit}. Nothing was chosen by the test images.",
        "",
    ]
    return "\n".join(lines)


def card_of_shots(
    title: str, base: Manifest, called: str, counts: dict[str, int], metric: Metric, classifier: Classifier, notes: str
) -> str:
    """Of a bundle that was made from a few images: what is known of it, and what cannot be."""
    height, width, channels = base.input.shape
    drawn = "" if base.graphs.decoder is None else ", and so is the decoder: it draws back what it learnt to draw there"
    lines = [
        f"# {title}",
        "",
        f"Takes images of {width}×{height} pixels, {'grey' if channels == 1 else 'colour'}; larger and smaller ones "
        f"are brought to that. The encoder is that of {called} ({base.title}), as it was{drawn}.",
        "",
        "| label | images |",
        "| --- | --- |",
        *(f"| {label} | {count} |" for label, count in counts.items()),
        "",
        "| measure | value | images | how |",
        "| --- | --- | --- | --- |",
        f"| {metric.name} | {metric.value:.4f} | {metric.images:,} | {metric.how} |",
        "",
        "That is all that is known: no other image was seen. The interval takes the images for a fair sample of those "
        "to come; other light, another camera or a kind that is missing here are not in it. "
        "`graft-train evaluate` on other labelled images says more.",
        "",
        f"Logits are divided by a temperature of {classifier.temperature:.3f}, at which the mean confidence in images "
        "that were left out is (right + 1) / (images + 2): what an accuracy can be believed in after so few.",
        "",
        f"{notes[0].upper()}{notes[1:]}.",
        "",
        "Made by `graft-train graft`; how, and from which base, stands in manifest.json under provenance.",
        "",
    ]
    return "\n".join(lines)
