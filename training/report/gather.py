"""The contents of a report, gathered from a bundle and its images; `sections` turns them into HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.bundle import Bundle, Manifest
from app.bundle.latent_map import LatentMap
from app.bundle.scoring import probabilities
from training.compare.results import Result
from training.data.imageset import ImageSet
from training.data.material import Material
from training.measure import domains, review
from training.measure.detection import ClassScores, by_class
from training.measure.metrics import confusion
from training.measure.outputs import Outputs, outputs_of
from training.recipe import Recipe
from training.report.words import in_words
from training.score import latent_map

_SHOWN, _LISTED = 12, 16


@dataclass(frozen=True)
class Listed:
    """An image for a person to look at, and the reason."""

    name: str
    why: str
    image: np.ndarray


@dataclass(frozen=True)
class Study:
    """The contents of a report. Of the data, only `reconstructions`, `to_label` and `to_check` hold images."""

    manifest: Manifest
    recipe: Recipe
    journal: Sequence[Mapping[str, Any]]  # a line for each epoch
    words: list[str]
    confusion: np.ndarray | None
    latent_map: LatentMap
    scores: dict[str, np.ndarray]  # anomaly scores, by what was scored
    by_class: list[ClassScores]  # the hardest class first
    reconstructions: list[tuple[np.ndarray, np.ndarray]]  # images and their reconstructions
    to_label: list[Listed]
    to_check: list[Listed]
    compared: Sequence[Result]
    between: list[domains.Distance]  # source and target, if they differ


def gather(
    bundle: Bundle,
    recipe: Recipe,
    material: Material,
    outputs: Outputs,
    journal: Sequence[Mapping[str, Any]],
    compared: Sequence[Result],
) -> Study:
    """`outputs` are the bundle's on the test images; `compared` are results of a comparison in the run's folder."""
    manifest, test = bundle.manifest, material.test
    counts = None
    if outputs.logits is not None and len(test.labels):
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
        latent_map=bundle.map or latent_map.fit(outputs.encoded["embedding"], labels),
        scores=scores,
        by_class=of_class,
        reconstructions=_reconstructions(bundle, test),
        to_label=to_label,
        to_check=to_check,
        compared=compared,
        between=between,
    )


def _scores(bundle: Bundle, material: Material, outputs: Outputs) -> tuple[dict[str, np.ndarray], list[ClassScores]]:
    """Scores of the test images and, if the source is another domain, of the source's; how each class fares."""
    if outputs.scores is None or bundle.manifest.anomaly is None:
        return {}, []
    names = bundle.manifest.provenance
    scores, other = {f"{names.target}, test": outputs.scores}, None
    if not material.one_domain:
        other = outputs_of(bundle, material.source_test, "source", ("scores",)).scores
    if other is not None:
        scores[f"{names.source}, the source"] = other
    return scores, by_class(bundle.manifest.anomaly.threshold, material.test, outputs.scores, other)


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
    points = outputs_of(bundle, data, "doubtful labels", (tensor,)).encoded[tensor]
    groups = review.groups(data, recipe.split.groups)
    return [
        Listed(
            data.name(doubt.index), f"is {labels[doubt.given]}; {labels[doubt.suggested]}?", data.images[doubt.index]
        )
        for doubt in review.doubtful_labels(points, data.labels, len(labels), count=_LISTED, groups=groups)
    ]
