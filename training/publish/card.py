"""card.md: what a bundle is, what it was trained on, and its measured quality."""

from collections.abc import Sequence

from app.bundle import InputSpec, Manifest
from app.bundle.manifest import Anomaly, Classifier, Metric
from training.measure.sets import COVERAGE, HEADS

_INDEX = "## Index"


def card(
    manifest: Manifest,
    validated: str,
    minutes: float,
    machine: str,
    tested: bool = True,
    sets: Sequence[Sequence[str]] = (),
) -> str:
    """`sets` has a row for each class, as `training.measure.sets.by_class` gives them."""
    p = manifest.provenance
    lines = [
        f"# {manifest.title}",
        "",
        f"Trained on {p.source}, grafted onto {p.target}. {_takes(manifest.input)} "
        f"Its embedding has {manifest.latent_size} numbers.",
        "",
        *metrics_table(manifest.metrics),
    ]
    if manifest.classifier:
        lines += _labels(manifest.classifier, f", fitted on {validated}")
    if manifest.anomaly:
        lines += [_threshold(manifest.anomaly), ""]
    lines += sets_table(sets)
    lines += _began_with(manifest)
    versions = ", ".join(f"{name} {number}" for name, number in p.versions.items())
    lines += [
        f"Made by `graft-train run` with the recipe in manifest.json, seed {p.seed}, in {minutes:.1f} minutes on "
        f"{machine}; "
        f"opset {p.opset}, {versions}, source at {p.commit}. "
        + (
            "No choice was based on the test images."
            if tested
            else "It has learnt from all images: there were none to test it on, and the numbers are of images that "
            "networks like it had not seen."
        ),
        "",
    ]
    return "\n".join(lines)


def card_of_recalibrated(manifest: Manifest, version: int, normals: int, anomalies: int) -> str:
    """For a bundle with a refitted anomaly score; everything else is that of `version`."""
    lines = [
        f"# {manifest.title}",
        "",
        f"{_takes(manifest.input)} Its embedding has {manifest.latent_size} numbers.",
        "",
    ]
    if manifest.metrics:
        lines += metrics_table(manifest.metrics)
    if manifest.classifier:
        lines += _labels(manifest.classifier, "")
    if manifest.anomaly:
        against = f", the rate with the best F1 against {anomalies:,} anomalies" if anomalies else ""
        lines += [
            f"{_threshold(manifest.anomaly)} The score was refitted on {normals:,} normal images of another data set, "
            f"half of them held out to calibrate it{against}.",
            "",
        ]
    lines += _began_with(manifest)
    lines += [
        f"Made by `graft-train calibrate` from version {version}. Graphs, labels, temperature and metrics are "
        "those of that version, whose card, like manifest.json under provenance, says how it was trained.",
        "",
    ]
    return "\n".join(lines)


def card_of_reindexed(card: str, version: int, images: int, name: str, holds: Sequence[str]) -> str:
    """The card of `version`, with what its index `holds` now."""
    kept = card.partition(_INDEX)[0].rstrip("\n")
    return (
        f"{kept}\n\n{_INDEX}\n\nSimilar images are found among {images:,} of {name}, with "
        f"{', '.join(holds) or 'nothing else'}. Put there by `graft-train index`, from version {version}; all else is "
        "as above.\n"
    )


def card_of_learnt(card: str, version: int, table: Sequence[str]) -> str:
    """The card of `version`, with what was learnt from feedback and how it was judged."""
    return (
        f"{card.rstrip()}\n\n## Learnt from feedback\n\nMade by `graft-train learn` from version {version}; the "
        "numbers above are of that version. What the next version had to pass:\n\n```\n" + "\n".join(table) + "\n```\n"
    )


def card_of_shots(
    *,
    title: str,
    base: Manifest,
    called: str,
    counts: dict[str, int],
    metric: Metric,
    classifier: Classifier,
    notes: str,
) -> str:
    """For a bundle that was made from a few images: what is known about it, and what is not."""
    drawn = (
        ""
        if base.graphs.decoder is None
        else ", and so is the decoder, which reconstructs what it was trained on there"
    )
    lines = [
        f"# {title}",
        "",
        f"{_takes(base.input)} The encoder is that of {called} ({base.title}), unchanged{drawn}.",
        "",
        "| label | images |",
        "| --- | --- |",
        *(f"| {label} | {count} |" for label, count in counts.items()),
        "",
        *metrics_table([metric]),
        "No other image was used. The bound assumes that new images are like these: it does not cover other light, "
        "another camera or a class that is missing here. Measure it on other labelled images with "
        "`graft-train evaluate`.",
        "",
        f"Logits are divided by a temperature of {classifier.temperature:.3f}, fitted on the images left out in turn.",
        "",
        f"{notes[0].upper()}{notes[1:]}.",
        "",
        *_began_with(base),
        "Made by `graft-train graft`; manifest.json has the base and the options under provenance.",
        "",
    ]
    return "\n".join(lines)


def card_of_base(manifest: Manifest) -> str:
    """Of a published network's bundle that nothing was trained for."""
    lines = [
        f"# {manifest.title}",
        "",
        f"{_takes(manifest.input)} Its code has {manifest.latent_size} numbers: it encodes, and can do nothing else. "
        "It is a base: `graft-train graft SHOTS --base` this folder puts classes of your own on it.",
        "",
        *_began_with(manifest),
        f"Made by `graft-train base`; opset {manifest.provenance.opset}, source at {manifest.provenance.commit}. "
        "Nothing was trained and nothing measured.",
        "",
    ]
    return "\n".join(lines)


def _labels(classifier: Classifier, fitted: str) -> list[str]:
    """`fitted` says on what."""
    names = ", ".join(classifier.labels)
    if classifier.thresholds is None:
        return [
            f"Labels: {names}. Logits are divided by a temperature of {classifier.temperature:.3f}{fitted}.",
            "",
        ]
    levels = zip(classifier.labels, classifier.thresholds, strict=True)
    return [
        f"Labels: {names}. An image may have several, or none: each whose probability, the sigmoid of its logit "
        f"divided by a temperature of {classifier.temperature:.3f}, reaches its threshold{fitted}.",
        "",
        "| label | threshold |",
        "| --- | --- |",
        *(f"| {label} | {level:.4f} |" for label, level in levels),
        "",
    ]


def _began_with(manifest: Manifest) -> list[str]:
    """Lines on published weights; none where there were none."""
    weights = manifest.provenance.weights
    if weights is None:
        return []
    by = f"published by {weights.publisher}" if weights.publisher else "whose publisher is not known here"
    under = f"licence {weights.licence}" if weights.licence else "the licence is not known here"
    return [
        f"The encoder began as {weights.backbone} with {weights.file}, {by}; {under}; SHA-256 {weights.sha256}.",
        "",
    ]


def _takes(spec: InputSpec) -> str:
    height, width, channels = spec.shape
    return f"Takes images of {width}×{height} pixels, {'grey' if channels == 1 else 'colour'}; others are resized."


def metrics_table(metrics: Sequence[Metric]) -> list[str]:
    rows = [f"| {metric.name} | {metric.value:.4f} | {metric.images:,} | {metric.how} |" for metric in metrics]
    return ["| measure | value | images | how |", "| --- | --- | --- | --- |", *rows, ""]


def sets_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines on prediction sets, class by class; none without rows."""
    if not rows:
        return []
    return [
        f"Prediction sets at a coverage of {COVERAGE:.0%} (`coverage={COVERAGE:g}`), on the test images: how often the "
        "set holds the truth, and how many labels it has. On the left with one threshold for all classes, on the right "
        "with one for every class (`conditional=true`).",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEADS, ["---"] * len(HEADS), *rows)),
        "",
    ]


def _threshold(anomaly: Anomaly) -> str:
    return (
        f"An image is called anomalous above a score of {anomaly.threshold:.3f}: {anomaly.false_alarm_rate:.2%} of "
        f"normal images are, measured on {anomaly.calibrated_on:,} held-out ones."
    )
