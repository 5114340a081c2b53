"""report.html: one page that needs no network, with what a person should see before trusting a bundle."""

import base64
import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle import Bundle, Manifest
from app.bundle.encode import png_of
from app.bundle.latent_map import LatentMap
from app.bundle.scoring import probabilities
from training.compare import results
from training.data.imageset import ImageSet
from training.data.material import Material
from training.learning.journal import JOURNAL_FILE
from training.measure import domains, evaluate, review
from training.measure.evaluate import Outputs
from training.recipe import Recipe
from training.report import charts
from training.report.html import page as frame
from training.report.html import table
from training.score import latent_map

_SHOWN, _LISTED = 12, 16
_LARGEST = 96  # pixels of a picture's longer side


@dataclass(frozen=True)
class Listed:
    """An image that a person should look at, and why."""

    name: str
    why: str
    image: np.ndarray


@dataclass(frozen=True)
class Apart:
    """How the anomaly score takes the normal test images of one class."""

    name: str
    images: int
    alarms: float  # share that is called anomalous
    auroc: float | None  # against the source's images, where the source is another domain


@dataclass(frozen=True)
class Study:
    """Everything that the page says; pictures apart, nothing of it is an image of the data."""

    manifest: Manifest
    recipe: Recipe
    journal: list[dict[str, Any]]
    words: list[str]
    confusion: np.ndarray | None
    latent_map: LatentMap
    scores: dict[str, np.ndarray]  # anomaly scores, by what was scored
    apart: list[Apart]  # the hardest class first
    drawn: list[tuple[np.ndarray, np.ndarray]]  # images and their reconstructions
    to_label: list[Listed] = field(default_factory=list)
    to_check: list[Listed] = field(default_factory=list)
    compared: list[results.Result] = field(default_factory=list)
    between: list[domains.Distance] = field(default_factory=list)  # of source and target, where they are two


def journal(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run."""
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in found if "epoch" in line]


def study(
    bundle: Bundle,
    manifest: Manifest,
    recipe: Recipe,
    material: Material,
    outputs: Outputs,
    folder: Path,
) -> Study:
    """`outputs` are the bundle's on the test images; `manifest` its own with the metrics put in; `folder` the run's."""
    test = material.test
    counts = None
    if outputs.logits is not None and len(test.labels):
        counts = evaluate.confusion(test.labels, outputs.logits.argmax(axis=1), len(test.classes))
    scores, by_class, strange = {}, [], None
    if outputs.scores is not None and manifest.anomaly is not None:
        scores = {f"{manifest.provenance.target}, test": outputs.scores}
        if not material.one_domain:
            strange = evaluate.run(bundle, material.source_test, "strangers", ("scores",)).scores
        if strange is not None:
            scores[f"{manifest.provenance.source}, the source"] = strange
        by_class = apart(manifest.anomaly.threshold, test, outputs.scores, strange)
    to_label, to_check = [], []
    if manifest.classifier is not None:
        to_label = _to_label(bundle, manifest, material)
        to_check = _to_check(bundle, manifest, recipe, material) if len(material.target.labels) else []
    between = [] if material.one_domain else domains.distances(bundle, material.source_test, test)
    drawn = []
    if bundle.decoder is not None:
        images = test.images[_spread(test, _SHOWN)]
        back = np.rint(bundle.reconstruct(bundle.encode(images)) * 255).astype(np.uint8)
        drawn = list(zip(images, back, strict=True))
    return Study(
        manifest,
        recipe,
        journal(folder / JOURNAL_FILE),
        [
            *_words(manifest, scores),
            *domains.words(between, manifest.provenance.source, manifest.provenance.target),
        ],
        counts,
        latent_map.fit(outputs.encoded["embedding"], test.labels if manifest.classifier else np.array([])),
        scores,
        by_class,
        drawn,
        to_label,
        to_check,
        results.read(folder),
        between,
    )


def auroc(normal: np.ndarray, strange: np.ndarray) -> float:
    """How often a strange image scores higher than a normal one; ties count half."""
    scores = np.concatenate([normal, strange])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[len(normal) :].sum() - len(strange) * (len(strange) + 1) / 2
    return float(above / (len(normal) * len(strange)))


def apart(threshold: float, data: ImageSet, scores: np.ndarray, strange: np.ndarray | None) -> list[Apart]:
    """`scores` are those of the data, which has labels; `strange` those of images that are anomalies."""
    found = []
    for label in np.unique(data.labels):
        own = scores[data.labels == label]
        against = None if strange is None else auroc(own, strange)
        found.append(Apart(data.classes[label], len(own), float(np.mean(own > threshold)), against))
    return sorted(found, key=lambda each: (-each.alarms, each.auroc or 0))


def _words(manifest: Manifest, scores: dict[str, np.ndarray]) -> list[str]:
    """What the numbers mean, in sentences."""
    found = {metric.name: metric for metric in manifest.metrics}
    said = []
    if "accuracy" in found:
        metric = found["accuracy"]
        low, high = _interval(metric.value, metric.images)
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


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's, 95 %."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def _spread(data: ImageSet, count: int) -> np.ndarray:
    """Indices of a few images, of every class where there are classes."""
    order = np.random.default_rng(0).permutation(len(data))
    if not len(data.labels):
        return order[:count]
    by_class = [order[data.labels[order] == label] for label in range(len(data.classes))]
    dealt = [members[i] for i in range(count) for members in by_class if i < len(members)]
    return np.array(dealt[:count], np.int64)


def _to_label(bundle: Bundle, manifest: Manifest, material: Material) -> list[Listed]:
    """From the source, where it has no labels; else from the calibration images, whose labels nothing has used."""
    assert manifest.classifier is not None
    pool = material.calibration if len(material.source.labels) else material.source
    outputs = evaluate.run(bundle, pool, "worth labelling", ("embedding", "logits"))
    assert outputs.logits is not None
    chances = probabilities(outputs.logits, manifest.classifier.temperature)
    listed = []
    for index in review.worth_labelling(chances, outputs.encoded["embedding"], _LISTED):
        first, second = np.argsort(-chances[index], kind="stable")[:2]
        guess = " or ".join(f"{manifest.classifier.labels[i]} ({chances[index][i]:.0%})" for i in (first, second))
        listed.append(Listed(pool.name(int(index)), f"{guess}?", pool.images[int(index)]))
    return listed


def _to_check(bundle: Bundle, manifest: Manifest, recipe: Recipe, material: Material) -> list[Listed]:
    assert manifest.classifier is not None
    tensor, data, labels = recipe.transfer.reads, material.target, manifest.classifier.labels
    points = evaluate.run(bundle, data, "doubtful labels", (tensor,)).encoded[tensor]
    return [
        Listed(
            data.name(doubt.index), f"is {labels[doubt.given]}; {labels[doubt.suggested]}?", data.images[doubt.index]
        )
        for doubt in review.doubtful_labels(points, data.labels, len(labels), _LISTED)
    ]


def page(found: Study, pictures: bool) -> str:
    """`pictures` puts images of the data into it: not for a page that is passed on with a bundle."""
    compared = results.section(found.compared, found.recipe) if found.compared else ""
    sections = [
        ("In short", _in_short(found)),
        ("Against the honest arms", compared),
        ("Learning curves", _curves(found.journal)),
        ("Confusion", _confusion(found)),
        ("Reconstructions", _pairs(found.drawn) if pictures else ""),
        ("Latent map", _latent_map(found)),
        ("How far apart source and target are", _domains(found)),
        ("Anomaly score", _anomaly(found)),
        ("Most worth labelling next", _listed(found.to_label, _WHY_LABEL) if pictures else ""),
        ("Labels most likely wrong", _listed(found.to_check, _WHY_CHECK) if pictures else ""),
        ("Where it comes from", _provenance(found)),
    ]
    return frame(found.manifest.title, sections)


_WHY_LABEL = (
    "Uncertain, and unlike each other: what their labels would teach most. None of them was trained on with one."
)
_WHY_CHECK = (
    "A linear model on the encoder's output, fitted on all other images, prefers another label. Not every one is a "
    "mistake; the list is ordered by how sure the model is."
)


def _in_short(found: Study) -> str:
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in found.words)
    rows = [
        (escape(each.name), f"{each.value:.4f}", f"{each.images:,}", escape(each.how))
        for each in found.manifest.metrics
    ]
    return said + table(("measure", "value", "images", "how"), rows, numbers=(1, 2))


def _curves(lines: list[dict[str, Any]]) -> str:
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


def _confusion(found: Study) -> str:
    counts = found.confusion
    if counts is None or found.manifest.classifier is None:
        return ""
    labels = [escape(label) for label in found.manifest.classifier.labels]
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
        for label, precision, recall, f1, images in zip(labels, *evaluate.class_measures(counts), strict=True)
    ]
    measures = table(("class", "precision", "recall", "F1", "images"), by_class, numbers=(1, 2, 3, 4))
    return (
        f'<p>A row for what an image is, a column for what it was taken for.</p><div class="wide"><table><tr><td></td>'
        f"{heads}</tr>{''.join(rows)}</table></div><br>{measures}"
    )


def _pairs(drawn: list[tuple[np.ndarray, np.ndarray]]) -> str:
    shown = "".join(f"<figure>{_picture(image)}{_picture(back)}</figure>" for image, back in drawn)
    return f'<p>Test images, each beside what is drawn back from its code.</p><div class="pictures">{shown}</div>'


def _latent_map(found: Study) -> str:
    at, labels = found.latent_map.points, found.latent_map.labels
    title = f"{len(at):,} test images by their codes"
    if labels is None or found.manifest.classifier is None:
        return charts.points(title, at, np.zeros(len(at), np.int64), (found.manifest.provenance.target,))
    return charts.points(title, at, labels, found.manifest.classifier.labels)


def _domains(found: Study) -> str:
    if not found.between:
        return ""
    heads = ("test images of both", "squared discrepancy", "by chance at most", "p-value")
    rows = [
        (each.what, f"{each.squared:.4f}", f"{each.by_chance:.4f}", f"{each.p_value:.3f}") for each in found.between
    ]
    return (
        "<p>The squared maximum mean discrepancy, and what 95 of 100 samples of the target alone stay below. Domains "
        "that look alike to it may still have their classes in other places.</p>"
        + table(heads, rows, numbers=(1, 2, 3))
    )


def _anomaly(found: Study) -> str:
    a = found.manifest.anomaly
    if a is None or not found.scores:
        return ""
    told = " + ".join(distance.name for distance in a.distances)
    said = f"<p>The score is the sum, in standard deviations, of {told}.</p>"
    return said + charts.histogram("Anomaly scores", found.scores, "score", a.threshold) + _by_class(found)


def _by_class(found: Study) -> str:
    if not found.apart:
        return ""
    against = found.apart[0].auroc is not None
    heads = ("class", "images", "called anomalous", f"AUROC against {escape(found.manifest.provenance.source)}")
    rows = [
        (escape(each.name), f"{each.images:,}", f"{each.alarms:.2%}", "" if each.auroc is None else f"{each.auroc:.4f}")
        for each in found.apart
    ]
    width = 4 if against else 3
    measures = table(heads[:width], [row[:width] for row in rows], numbers=range(1, width))
    return (
        "<p>The false-alarm rate is that of all normal images together; each class has its own, the hardest first.</p>"
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
    """(H, W, C) uint8 → an image element that holds its own data."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png_of(image, _LARGEST)).decode()}">'


def _provenance(found: Study) -> str:
    p, m = found.manifest.provenance, found.manifest
    rows = [
        ("source → target", escape(f"{p.source} → {p.target}")),
        ("input", " × ".join(map(str, m.input.shape))),
        ("made", escape(p.created)),
        ("source tree", f"<code>{escape(p.commit)}</code>"),
        ("seed", str(p.seed)),
        ("versions", escape(", ".join(f"{name} {number}" for name, number in p.versions.items()))),
        *((f"SHA-256 of {escape(name)}", f"<code>{digest}</code>") for name, digest in p.data.items()),
        ("recipe", f"<code>{escape(p.recipe)}</code>"),
    ]
    return table(("", ""), rows)
