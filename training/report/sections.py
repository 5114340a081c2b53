"""report.html, section by section: what to look at before trusting a bundle."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import numpy as np

from app.bundle.encode import png_of
from app.bundle.manifest import Weights
from training.measure import defects, sets, several
from training.measure.detection import Curve, Measured
from training.measure.metrics import class_measures
from training.report import charts, comparison
from training.report.gather import Judged, Listed, Study
from training.report.html import page as frame
from training.report.html import table

_LARGEST, _LARGER = 96, 320  # pixels of a picture's longer side
_POINTS = 100  # of a curve
_MARKED = (170, 0, 0)  # added to a third of the picture where the mask is


def page(study: Study, pictures: bool) -> str:
    """`pictures` shows images of the data, which must not be published with a bundle."""
    compared = comparison.section(study.compared, study.recipe) if study.compared else ""
    sections = [
        ("In short", _in_short(study)),
        ("Against the baselines", compared),
        ("Learning curves", _curves(study.journal)),
        ("Confusion", _confusion(study)),
        ("Labels", _of_labels(study)),
        ("Prediction sets", _sets(study)),
        ("Reconstructions", _pairs(study.reconstructions) if pictures else ""),
        ("Latent map", _latent_map(study)),
        ("How far apart source and target are", _domains(study)),
        ("Anomaly score", _anomaly(study)),
        ("Defects", _defects(study)),
        ("Defects with the lowest scores", _judged(study, "misses") if pictures else ""),
        ("Sound images with the highest scores", _judged(study, "false_alarms") if pictures else ""),
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
    return sentences + _by_labels(study) + table(("measure", "value", "images", "how"), rows, numbers=(1, 2))


def _by_labels(study: Study) -> str:
    if not study.by_labels:
        return ""
    title = "Accuracy by labels, on images that were not learnt from (bars: 95 %)"
    return charts.lines(title, study.by_labels, "labels", "accuracy", log_x=True)


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


def _of_labels(study: Study) -> str:
    if study.of_labels is None:
        return ""
    rows = [(escape(label), *numbers) for label, *numbers in study.of_labels.rows()]
    return "<p>An image may have several labels: those whose probability reaches their threshold.</p>" + table(
        several.HEADS, rows, numbers=tuple(range(1, len(several.HEADS)))
    )


def _sets(study: Study) -> str:
    if not study.sets:
        return ""
    rows = [(escape(label), *numbers) for label, *numbers in study.sets]
    return (
        f"<p>At a coverage of {sets.COVERAGE:.0%}: the share of test images whose set holds the truth, and the labels "
        "in a set. Left: one threshold for all classes, so easy classes are covered more often than hard ones. Right: "
        "one for every class. An empty set means that no label is likely enough.</p>"
        + table(sets.HEADS, rows, numbers=range(1, len(sets.HEADS)))
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
    groups = dict(study.scores)
    if study.inspected is not None:
        groups[f"{study.manifest.provenance.target}, defects"] = study.inspected.scores
    return definition + charts.histogram("Anomaly scores", groups, "score", a.threshold) + _by_class(study)


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


def _defects(study: Study) -> str:
    a = study.manifest.anomaly
    if study.inspected is None or a is None:
        return ""
    found, curves = study.inspected.found, study.inspected.curves
    names = [name for name in defects.TITLES if any(name in group.measures for group in found.groups)]
    rows = [
        (
            escape(group.name),
            f"{group.images:,}",
            f"{group.masks:,}",
            *(_measured(group.measures[name]) if name in group.measures else "" for name in names),
        )
        for group in found.groups
    ]
    heads = ("defects", "images", "masks", *(defects.TITLES[name] for name in names))
    measures = table(heads, rows, numbers=range(1, len(heads)))
    charted = ""
    if curves:
        roc = [charts.Series(name, *_thinned(*_roc(curve))) for name, curve in curves.items()]
        precision = [charts.Series(name, *_thinned(*_precision(curve))) for name, curve in curves.items()]
        charted = (
            f'<div class="grid">{charts.lines("ROC", roc, "false alarms among sound images", "recall")}'
            f"{charts.lines('Precision and recall', precision, 'recall', 'precision')}</div>"
        )
    return (
        f"<p>Against {found.sound:,} sound test images. Below each value is its interval of 95 %, from samples of the "
        f"test images. Recall is the share called anomalous at a stated false-alarm rate of {a.false_alarm_rate:.2%}."
        f"</p>{measures}{charted}"
    )


def _measured(measured: Measured) -> str:
    return f"{measured.value:.4f}<br><small>{measured.low:.4f} to {measured.high:.4f}</small>"


def _roc(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    false, true = (np.append(0, counts[0]) for counts in (curve.false, curve.true))
    return false / false[-1], true / true[-1]


def _precision(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    false, true = curve.false[0], curve.true[0]
    return true / true[-1], true / (false + true)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """At most _POINTS of them."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return x[kept].tolist(), y[kept].tolist()


def _judged(study: Study, which: Literal["misses", "false_alarms"]) -> str:
    if study.inspected is None:
        return ""
    shown = "".join(
        f"<figure>{''.join(_picture(each, _LARGER) for each in _side_by_side(judged))}<br>"
        f"<code>{escape(judged.name)}</code><br>{escape(judged.why)}</figure>"
        for judged in getattr(study.inspected, which)
    )
    return (
        "<p>The picture as the encoder takes it; its map, bright where it is anomalous, all on one scale; and its mask "
        f'in red, where it is known.</p><div class="pictures wider">{shown}</div>'
    )


def _side_by_side(judged: Judged) -> list[np.ndarray]:
    """The picture, its map, and the picture with its mask in red; (H, W, C) uint8 each."""
    shown = [judged.image]
    if judged.map is not None:
        shown.append(np.rint(judged.map * 255).astype(np.uint8)[..., None])
    if judged.mask is not None:
        over = np.repeat(judged.image, 3, axis=2) if judged.image.shape[2] == 1 else judged.image.copy()
        over[judged.mask] = over[judged.mask] // 3 + np.array(_MARKED, np.uint8)
        shown.append(over)
    return shown


def _listed(listed: list[Listed], why: str) -> str:
    if not listed:
        return ""
    shown = "".join(
        f"<figure>{_picture(each.image)}<br><code>{escape(each.name)}</code><br>{escape(each.why)}</figure>"
        for each in listed
    )
    return f'<p>{why}</p><div class="pictures">{shown}</div>'


def _picture(image: np.ndarray, largest: int = _LARGEST) -> str:
    """(H, W, C) uint8 → an image element that holds its data."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png_of(image, largest)).decode()}">'


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
