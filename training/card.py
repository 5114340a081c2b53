"""card.md: what a bundle is, what it was trained on, and what it reaches, for a person to read."""

from app.bundle import Manifest


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
