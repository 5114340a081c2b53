"""The contents of a report, gathered from a bundle and its images; `sections` turns them into HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from app.bundle import Bundle, InputSpec, Manifest, preprocess_pixels
from app.bundle.latent_map import LatentMap
from app.bundle.scoring import label_probabilities
from training.compare.results import Result
from training.data import masks
from training.data.imageset import ImageSet
from training.data.material import Material
from training.data.splits import groups_and_copies, stated_groups
from training.measure import domains, review, sets
from training.measure.defects import Defects
from training.measure.detection import ClassScores, Curve, by_class
from training.measure.maps import has_maps, maps_of
from training.measure.metrics import confusion, measured_labels
from training.measure.outputs import Outputs, outputs_of
from training.measure.several import LabelMeasures
from training.recipe import Recipe
from training.report.charts import Series
from training.report.words import in_words
from training.score import latent_map

_SHOWN, _LISTED, _WRONG = 12, 16, 8
_LONGEST = 512  # pixels of a picture in tiles


@dataclass(frozen=True)
class Listed:
    """An image for a person to look at, and the reason."""

    name: str
    why: str
    image: np.ndarray


@dataclass(frozen=True)
class Judged:
    """A test image that was judged wrongly, and where its defects are."""

    name: str
    why: str
    image: np.ndarray
    map: np.ndarray | None  # (H, W) in 0…1
    mask: np.ndarray | None  # (H, W) bool


@dataclass(frozen=True)
class Inspected:
    """What was made of test images with defects."""

    found: Defects
    scores: np.ndarray  # anomaly scores of the images with defects
    curves: dict[str, Curve]  # of all defects, or of each kind, against the sound images
    misses: list[Judged]  # images with defects, the lowest score first
    false_alarms: list[Judged]  # sound images, the highest score first


class Verdict(NamedTuple):
    """What comes first in a report."""

    sentences: Sequence[str] = ()
    by_labels: Sequence[Series] = ()  # accuracy by labels


@dataclass(frozen=True)
class Study:
    """The contents of a report.

    Of the data, only `reconstructions`, `to_label`, `to_check` and the images judged wrongly hold images.
    """

    manifest: Manifest
    recipe: Recipe
    journal: Sequence[Mapping[str, Any]]  # a line for each epoch
    words: list[str]
    confusion: np.ndarray | None
    of_labels: LabelMeasures | None  # in its place, where an image may have several labels
    latent_map: LatentMap
    scores: dict[str, np.ndarray]  # anomaly scores, by what was scored
    by_class: list[ClassScores]  # the hardest class first
    reconstructions: list[tuple[np.ndarray, np.ndarray]]  # images and their reconstructions
    to_label: list[Listed]
    to_check: list[Listed]
    compared: Sequence[Result]
    between: list[domains.Distance]  # source and target, if they differ
    inspected: Inspected | None = None
    sets: Sequence[Sequence[str]] = ()  # a row for each class
    by_labels: Sequence[Series] = ()  # the verdict's


def gather(
    bundle: Bundle,
    recipe: Recipe,
    material: Material,
    outputs: Outputs,
    journal: Sequence[Mapping[str, Any]],
    compared: Sequence[Result],
    found: Defects | None = None,
) -> Study:
    """`outputs` are the bundle's on the test images, and `found` is what was measured of their defects; `compared` are
    results of a comparison in the run's folder."""
    manifest, test = bundle.manifest, material.test
    counts = None
    if outputs.logits is not None and len(test.labels) and test.sound is None:
        counts = confusion(test.labels, outputs.logits.argmax(axis=1), len(test.classes))
    scores, of_class = _scores(bundle, material, outputs)
    to_label, to_check = [], []
    if manifest.classifier is not None:
        to_label = _to_label(bundle, manifest, material)
        to_check = _to_check(bundle, manifest, recipe, material) if len(material.target.labels) else []
    between = [] if material.one_domain else domains.distances(bundle, material.source_test, test)
    apart = domains.words(between, manifest.provenance.source, manifest.provenance.target)
    labels = test.labels if manifest.classifier else np.array([])
    return Study(
        manifest=manifest,
        recipe=recipe,
        journal=journal,
        words=[*in_words(manifest, scores), *apart],
        confusion=counts,
        of_labels=measured_labels(bundle, test, outputs),
        latent_map=bundle.map or latent_map.fit(outputs.encoded["embedding"], labels),
        scores=scores,
        by_class=of_class,
        reconstructions=_reconstructions(bundle, test),
        to_label=to_label,
        to_check=to_check,
        compared=compared,
        between=between,
        inspected=None if found is None or outputs.scores is None else _inspected(bundle, test, outputs.scores, found),
        sets=list(sets.by_class(bundle, test, outputs)) if material.tested and test.sound is None else [],
    )


def _scores(bundle: Bundle, material: Material, outputs: Outputs) -> tuple[dict[str, np.ndarray], list[ClassScores]]:
    """Scores of the test images and, if the source is another domain, of the source's; how each class fares."""
    if outputs.scores is None or bundle.manifest.anomaly is None:
        return {}, []
    names, defective = bundle.manifest.provenance, material.test.defective
    scores, other = {f"{names.target}, test": outputs.scores[~defective]}, None
    if not material.one_domain:
        other = outputs_of(bundle, material.source_test, "source", ("scores",)).scores
    if other is not None:
        scores[f"{names.source}, the source"] = other
    if defective.any():
        return scores, []
    return scores, by_class(bundle.manifest.anomaly.threshold, material.test, outputs.scores, other)


def _inspected(bundle: Bundle, test: ImageSet, scores: np.ndarray, found: Defects) -> Inspected:
    defective = test.defective
    curves = {}
    if not defective.all():
        for kind in test.kinds:
            own = test.labels == test.classes.index(kind)
            curves[kind] = Curve.of(scores[~defective], scores[own])
        if len(curves) > 1:
            curves = {"all": Curve.of(scores[~defective], scores[defective]), **curves}
    order = np.argsort(scores, kind="stable")
    misses, alarms = order[defective[order]][:_WRONG], order[~defective[order]][::-1][:_WRONG]
    shown, spec = [int(index) for index in (*misses, *alarms)], bundle.manifest.input
    places = {index: masks.placed(test, index, spec) for index in shown} if test.masks else {}
    known, scale, maps = masks.are_known(test), (0.0, 1.0), _maps(bundle, test, shown, found)
    if maps:
        pixels = np.concatenate(
            [own[places[index][1]] if index in places else own.ravel() for index, own in maps.items()]
        )
        scale = float(pixels.min()), float(np.quantile(pixels, 0.999))
    assert bundle.manifest.anomaly is not None  # the images have scores
    threshold = bundle.manifest.anomaly.threshold

    def judged(index: int) -> Judged:
        mask, inside = places.get(index, (None, True))
        alarm = "called anomalous" if scores[index] > threshold else "called normal"
        found = Judged(
            name=test.name(index),
            why=f"{test.classes[test.labels[index]]}, {alarm}, score {scores[index]:.2f}",
            image=test.images[index],
            map=_scaled(maps[index], *scale) * inside if maps else None,
            mask=mask > 0 if known[index] and mask is not None else None,
        )
        return _shrunk(found, spec) if spec.tiles is not None else found

    return Inspected(
        found=found,
        scores=scores[defective],
        curves=curves,
        misses=[judged(int(index)) for index in misses],
        false_alarms=[judged(int(index)) for index in alarms],
    )


def _shrunk(judged: Judged, spec: InputSpec) -> Judged:
    """A picture in tiles at the size of its map, or a whole part of it, where that is large."""
    assert judged.map is not None  # a bundle that cuts tiles maps patches
    step = -(-max(judged.map.shape) // _LONGEST)
    height, width = (-(-side // step) for side in judged.map.shape)
    own = spec.model_copy(update={"height": height, "width": width, "tiles": None})
    return replace(
        judged,
        image=preprocess_pixels(judged.image, own),
        map=_largest(judged.map, step),
        mask=None if judged.mask is None else _largest(judged.mask, step),
    )


def _largest(values: np.ndarray, step: int) -> np.ndarray:
    """(h, w) → the largest of each square of that side; those at the end may be smaller."""
    down, across = (np.arange(0, side, step) for side in values.shape)
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, down, axis=0), across, axis=1))


def _maps(bundle: Bundle, test: ImageSet, shown: Sequence[int], found: Defects) -> dict[int, np.ndarray]:
    """The map of each image that is shown; without masks, none has been made yet."""
    if found.maps is not None:
        return {index: found.maps[index] for index in shown}
    if not has_maps(bundle):
        return {}
    made = maps_of(bundle, test.take(np.array(shown, np.int64)), "maps")
    return dict(zip(shown, made, strict=True))


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) / max(1e-9, high - low), 0, 1)


def _reconstructions(bundle: Bundle, test: ImageSet) -> list[tuple[np.ndarray, np.ndarray]]:
    if bundle.decoder is None:
        return []
    images = test.images[_spread(test, _SHOWN)]
    decoded = np.rint(bundle.reconstruct(bundle.encode(images)) * 255).astype(np.uint8)
    return list(zip(images, decoded, strict=True))


def _spread(data: ImageSet, count: int) -> np.ndarray:
    """Indices of a few images, spread over the classes if there are any."""
    order = np.random.default_rng(0).permutation(len(data))
    if not len(data.labels):
        return order[:count]
    by_class = [order[data.labels[order] == label] for label in range(len(data.classes))]
    dealt = [members[i] for i in range(count) for members in by_class if i < len(members)]
    return np.array(dealt[:count], np.int64)


def _to_label(bundle: Bundle, manifest: Manifest, material: Material) -> list[Listed]:
    """Images without a label, if there are any."""
    assert manifest.classifier is not None
    pool = review.unlabelled(material)
    if pool is None:
        return []
    outputs = outputs_of(bundle, pool, "worth labelling", ("embedding", "logits"))
    assert outputs.logits is not None
    chances = label_probabilities(outputs.logits, manifest.classifier)
    listed = []
    for index in review.worth_labelling(chances, outputs.encoded["embedding"], _LISTED):
        first, second = np.argsort(-chances[index], kind="stable")[:2]
        guess = " or ".join(f"{manifest.classifier.labels[i]} ({chances[index][i]:.0%})" for i in (first, second))
        listed.append(Listed(pool.name(int(index)), f"{guess}?", pool.images[int(index)]))
    return listed


def _to_check(bundle: Bundle, manifest: Manifest, recipe: Recipe, material: Material) -> list[Listed]:
    assert manifest.classifier is not None
    tensor, data, labels = recipe.transfer.reads, material.target, manifest.classifier.labels
    points = outputs_of(bundle, data, "doubtful labels", (tensor,)).encoded[tensor]
    groups = groups_and_copies(data, stated_groups(data, recipe.split.groups))
    return [
        Listed(
            data.name(doubt.index), f"is {labels[doubt.given]}; {labels[doubt.suggested]}?", data.images[doubt.index]
        )
        for doubt in review.doubtful_labels(points, data.labels, len(labels), count=_LISTED, groups=groups)
    ]
