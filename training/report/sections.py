"""report.html, section by section: what to look at before trusting a bundle."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from app.bundle.encode import png_of
from app.bundle.manifest import Weights
from training.measure.metrics import class_measures
from training.report import charts, comparison
from training.report.gather import Listed, Study
from training.report.html import page as frame
from training.report.html import table

_LARGEST = 96  # pixels of a picture's longer side


def page(study: Study, pictures: bool) -> str:
    """`pictures` shows images of the data, which must not be published with a bundle."""
    compared = comparison.section(study.compared, study.recipe) if study.compared else ""
    sections = [
        ("In short", _in_short(study)),
        ("Against the baselines", compared),
        ("Learning curves", _curves(study.journal)),
        ("Confusion", _confusion(study)),
        ("Reconstructions", _pairs(study.reconstructions) if pictures else ""),
        ("Latent map", _latent_map(study)),
        ("How far apart source and target are", _domains(study)),
        ("Anomaly score", _anomaly(study)),
        ("Most worth labelling next", _listed(study.to_label, _WHY_LABEL) if pictures else ""),
        ("Labels most likely wrong", _listed(study.to_check, _WHY_CHECK) if pictures else ""),
        ("Where it comes from", _provenance(study)),
    ]
    return frame(study.manifest.title, sections)


_WHY_LABEL = "Uncertain, and unlike each other: their labels would help most. None of them has one."
_WHY_CHECK = (
    "A linear model on the encoder's output, fitted without the image, its copies and its group, predicts another "
    "label. Not every one is a mistake; the model's surest come first. An encoder that was trained with these labels "
    "has learnt some of the mistakes: fewer are found then."
)


def _in_short(study: Study) -> str:
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in study.words)
    rows = [
        (escape(each.name), f"{each.value:.4f}", f"{each.images:,}", escape(each.how))
        for each in study.manifest.metrics
    ]
    return sentences + table(("measure", "value", "images", "how"), rows, numbers=(1, 2))


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    charted = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        epochs = [line["epoch"] for line in own]
        series = [
            charts.Series("training", epochs, [line["loss"] for line in own]),
            charts.Series("validation", epochs, [line["validation_loss"] for line in own]),
        ]
        seconds = sum(line["seconds"] for line in own)
        charted.append(charts.lines(f"{stage}, {seconds:,.0f} s", series, "epoch", "loss"))
    return f'<div class="grid">{"".join(charted)}</div>' if charted else ""


def _confusion(study: Study) -> str:
    counts = study.confusion
    if counts is None or study.manifest.classifier is None:
        return ""
    labels = [escape(label) for label in study.manifest.classifier.labels]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for i, label in enumerate(labels):
        cells = "".join(
            f'<td class="n" style="background:rgb({"0 114 178" if i == j else "213 94 0"}/{shares[i, j] ** 0.5:.2f})">'
            f"{count:,}</td>"
            for j, count in enumerate(counts[i])
        )
        rows.append(f"<tr><th>{label}</th>{cells}</tr>")
    heads = "".join(f'<th class="n">{label}</th>' for label in labels)
    by_class = [
        (label, f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}", f"{images:,}")
        for label, precision, recall, f1, images in zip(labels, *class_measures(counts), strict=True)
    ]
    measures = table(("class", "precision", "recall", "F1", "images"), by_class, numbers=(1, 2, 3, 4))
    return (
        f'<p>Rows are labels, columns predictions.</p><div class="wide"><table><tr><td></td>'
        f"{heads}</tr>{''.join(rows)}</table></div><br>{measures}"
    )


def _pairs(reconstructions: list[tuple[np.ndarray, np.ndarray]]) -> str:
    shown = "".join(f"<figure>{_picture(image)}{_picture(decoded)}</figure>" for image, decoded in reconstructions)
    return f'<p>Test images, each beside its reconstruction.</p><div class="pictures">{shown}</div>'


def _latent_map(study: Study) -> str:
    at, labels = study.latent_map.points, study.latent_map.labels
    title = f"{len(at):,} test images by their codes"
    if labels is None or study.manifest.classifier is None:
        return charts.points(title, at, np.zeros(len(at), np.int64), (study.manifest.provenance.target,))
    return charts.points(title, at, labels, study.manifest.classifier.labels)


def _domains(study: Study) -> str:
    if not study.between:
        return ""
    heads = ("test images of both", "squared discrepancy", "95 % quantile by chance", "p-value")
    rows = [
        (each.what, f"{each.squared:.4f}", f"{each.by_chance:.4f}", f"{each.p_value:.3f}") for each in study.between
    ]
    return (
        "<p>The squared maximum mean discrepancy, and its 95 % quantile between samples of the target alone. Domains "
        "that it cannot tell apart may still differ in where their classes lie.</p>"
        + table(heads, rows, numbers=(1, 2, 3))
    )


def _anomaly(study: Study) -> str:
    a = study.manifest.anomaly
    if a is None or not study.scores:
        return ""
    distances = " + ".join(distance.name for distance in a.distances)
    definition = f"<p>The score is the sum, in standard deviations, of {distances}.</p>"
    return definition + charts.histogram("Anomaly scores", study.scores, "score", a.threshold) + _by_class(study)


def _by_class(study: Study) -> str:
    if not study.by_class:
        return ""
    against = study.by_class[0].auroc is not None
    heads = ("class", "images", "called anomalous", f"AUROC against {escape(study.manifest.provenance.source)}")
    rows = [
        (escape(each.name), f"{each.images:,}", f"{each.alarms:.2%}", "" if each.auroc is None else f"{each.auroc:.4f}")
        for each in study.by_class
    ]
    width = 4 if against else 3
    measures = table(heads[:width], [row[:width] for row in rows], numbers=range(1, width))
    return (
        "<p>The false-alarm rate is that of all normal images together; each class has its own, the highest first.</p>"
        + measures
    )


def _listed(listed: list[Listed], why: str) -> str:
    if not listed:
        return ""
    shown = "".join(
        f"<figure>{_picture(each.image)}<br><code>{escape(each.name)}</code><br>{escape(each.why)}</figure>"
        for each in listed
    )
    return f'<p>{why}</p><div class="pictures">{shown}</div>'


def _picture(image: np.ndarray) -> str:
    """(H, W, C) uint8 → an image element that holds its data."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png_of(image, _LARGEST)).decode()}">'


def _weights(weights: Weights) -> str:
    known = (weights.backbone, weights.file, weights.publisher, weights.licence, f"SHA-256 {weights.sha256}")
    return ", ".join(each for each in known if each is not None)


def _provenance(study: Study) -> str:
    p, m = study.manifest.provenance, study.manifest
    rows = [
        ("source → target", escape(f"{p.source} → {p.target}")),
        ("input", " × ".join(map(str, m.input.shape))),
        ("created", escape(p.created)),
        ("source tree", f"<code>{escape(p.commit)}</code>"),
        ("seed", str(p.seed)),
        *([("weights", escape(_weights(p.weights)))] if p.weights else []),
        ("versions", escape(", ".join(f"{name} {number}" for name, number in p.versions.items()))),
        *((f"SHA-256 of {escape(name)}", f"<code>{digest}</code>") for name, digest in p.data.items()),
        ("recipe", f"<code>{escape(p.recipe)}</code>"),
    ]
    return table(("", ""), rows)
