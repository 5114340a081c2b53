"""A bundle before it is published: export → fit the score → measure. Each stage takes what the last returned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.bundle import Bundle, assemble, with_patches, with_references
from app.bundle.index import FILE as INDEX_FILE
from app.bundle.manifest import PATCH_FEATURES, Anomaly, Classifier, Graph, Metric, Weights
from app.bundle.regions import PEAKS
from app.bundle.scoring import PATCHES
from training.data.folds import folds_of
from training.data.material import Material
from training.data.splits import split
from training.errors import TrainingError
from training.learning.inference import accuracy_of
from training.learning.stages import Learnt
from training.learning.teacher import Teacher
from training.measure import defects, likelihood
from training.measure.defects import Defects
from training.measure.metrics import accuracy, bundle_metrics, test_part
from training.measure.outputs import Outputs, outputs_of
from training.networks.graph import OPSET
from training.progress import say
from training.publish import onnx
from training.publish.crossed import ACROSS, Crossed, metrics_across
from training.publish.onnx import Exported
from training.publish.provenance import provenance
from training.publish.quantise import gate, quantised
from training.recipe import DistilMode, PasteMode, Recipe
from training.score import (
    anomaly,
    codes,
    distances,
    drift,
    examples,
    label_thresholds,
    latent_map,
    marks,
    patches,
    reference,
    sets,
    temperature,
)

_SOME = 256  # images on which torch and the exported graphs are compared, where torch takes long
MOST_ACCURACY_LOST = 0.001  # between torch and the exported fp32 bundle


@dataclass(frozen=True)
class Draft:
    """What `save` will write, and the bundle made of it in memory. Its graphs are loaded once for all stages."""

    exported: Exported
    fields: dict[str, Any]  # of the manifest
    bundle: Bundle
    arrays: dict[str, np.ndarray]  # of the reference file
    notes: tuple[Metric, ...] = ()  # metrics of the export itself
    # (N,) anomaly scores of the target's images by folds that do not hold them, where none were held out
    scores: np.ndarray | None = None

    @classmethod
    def of(cls, name: str, exported: Exported, fields: dict[str, Any]) -> "Draft":
        fields = {**exported.fields, **fields}
        return cls(exported, fields, assemble(name, fields, exported.files, exported.tolerances), {})

    def with_patches(self, model: bytes) -> "Draft":
        """With a graph that gives each place its distance, by a memory of patches or by marks."""
        graph = _graph(self)
        graphs = self.exported.graphs.model_copy(update={"patches": graph})
        off = max(patches.TOLERANCE, self.exported.tolerances.get(PATCH_FEATURES, 0))
        exported = replace(
            self.exported,
            graphs=graphs,
            files={**self.exported.files, graph.file: model},
            tolerances=self.exported.tolerances | {tensor.name: off for tensor in graph.outputs},
        )
        return replace(
            self,
            exported=exported,
            fields=self.fields | exported.fields,
            bundle=with_patches(self.bundle, graph, model),
        )

    def with_references(self, fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Draft":
        arrays = self.arrays | arrays
        bundle = with_references(self.bundle, fields, arrays)
        return replace(self, fields=self.fields | fields, bundle=bundle, arrays=arrays)


@dataclass(frozen=True)
class Measured:
    """A draft with its metrics, and its outputs on the test images."""

    draft: Draft
    outputs: Outputs
    defects: Defects | None  # where the test images have some


def export(recipe: Recipe, material: Material, learnt: Learnt) -> Draft:
    """The graphs in floats, as accurate as the torch modules."""
    features = "features" in distances.tensors(recipe.anomaly.distances)
    exported = onnx.export(
        learnt.net,
        learnt.head,
        material.spec,
        reads=recipe.transfer.reads,
        features=features,
        decodes=bool(recipe.decoder.epochs),
        patches=(recipe.anomaly.strides or ()) if PATCHES in recipe.anomaly.distances else None,
    )
    fields = _fields(recipe, material, labelled=learnt.head is not None, weights=learnt.weights)
    draft = Draft.of(recipe.name, exported, fields)
    notes: list[Metric] = []
    if learnt.head is not None:
        in_torch = _torch_accuracy(recipe, draft.bundle, learnt, material)
        notes += [in_torch] if material.tested else []  # of images that were learnt from it would only mislead
    if isinstance(recipe.transfer, DistilMode) and len(material.test.labels):
        notes.append(_teacher_accuracy(recipe.transfer, material))
    if recipe.trains_posterior:
        notes += likelihood.metrics(learnt.net, recipe.objective, material.test)
    return replace(draft, notes=tuple(notes))


def _fields(recipe: Recipe, material: Material, labelled: bool, weights: Weights | None) -> dict[str, Any]:
    """The manifest's fields that do not depend on the graphs, before the score is fitted."""
    return {
        "title": recipe.title,
        "variational": recipe.trains_posterior,
        "classifier": _classifier(material) if labelled else None,
        "anomaly": None,
        "reference": None,
        "metrics": (),
        "provenance": provenance(_without_folders(recipe), material.fingerprints(), OPSET, weights),
    }


def _classifier(material: Material, temperature: float = 1.0, thresholds: Sequence[float] | None = None) -> Classifier:
    """`thresholds` are of labels of which an image may have several; until they are known, a half."""
    labels = material.target.classes
    if material.labelled_held_out.several is not None and thresholds is None:
        thresholds = [0.5] * len(labels)
    return Classifier(
        labels=labels, temperature=temperature, thresholds=None if thresholds is None else tuple(thresholds)
    )


def _without_folders(recipe: Recipe) -> Recipe:
    """Bundles are published with their recipe: it names folders and files, and does not say where they are."""
    network, split = recipe.network, recipe.split
    if network.weights is not None:
        network = network.model_copy(update={"weights": Path(network.weights).name})
    if split.groups is not None and split.groups.endswith(".csv"):
        split = split.model_copy(update={"groups": Path(split.groups).name})
    mode = recipe.transfer
    if isinstance(mode, DistilMode):
        mode = mode.model_copy(update={"teacher_weights": Path(mode.teacher_weights).name})
    names = {"source": Path(recipe.source).name, "target": Path(recipe.target).name}
    return recipe.model_copy(update={**names, "network": network, "split": split, "transfer": mode})


def _torch_accuracy(recipe: Recipe, bundle: Bundle, learnt: Learnt, material: Material) -> Metric:
    """Accuracy of the torch modules; the exported graphs must agree with it."""
    assert learnt.head is not None
    images, how = material.test, "the torch modules, the same images"
    if not images.labelled:
        images, how = material.labelled_held_out, f"the torch modules, {label_source(material)}"
    if learnt.net.published and len(images) > _SOME:
        images, how = images.take(_spread(len(images))), f"the torch modules, {_SOME} of these images"
    in_torch = accuracy_of(learnt.net, learnt.head, recipe.transfer.reads, images)
    served = accuracy(bundle, images, "agreement")
    if abs(in_torch - served) > MOST_ACCURACY_LOST:
        raise TrainingError(
            f"the exported graphs have an accuracy of {served:.4f}, torch {in_torch:.4f}: not published"
        )
    name = "accuracy_in_torch" if images.several is None else "label_accuracy_in_torch"
    return Metric(name=name, value=in_torch, images=len(images), how=how)


def _teacher_accuracy(mode: DistilMode, material: Material) -> Metric:
    """What distillation is held to."""
    side = f"enlarged to {mode.teacher_side} pixels" if mode.teacher_side > min(material.spec.shape[:2]) else "as here"
    return Metric(
        name="teacher_accuracy",
        value=Teacher(mode, torch.device("cuda" if torch.cuda.is_available() else "cpu")).accuracy(material),
        images=len(material.test),
        how=f"a linear head on {mode.teacher}, frozen; the same images, {side}",
    )


def _spread(count: int) -> np.ndarray:
    """Evenly spaced: a folder's images lie class by class."""
    return np.linspace(0, count - 1, _SOME).astype(int)


def label_source(material: Material) -> str:
    if material.folds is not None:
        return f"{len(material.target):,} images, each by what learnt from other folds"
    if len(material.calibrates_labels) > 1:
        return f"{len(material.validation):,} validation and {len(material.calibration):,} calibration images"
    of = "" if material.labelled_held_out is material.validation else " of the source"
    return f"{len(material.labelled_held_out):,} validation images{of}"


def fit_score(recipe: Recipe, material: Material, draft: Draft, crossed: Crossed | None = None) -> Draft:
    """Anomaly score from training and calibration images, temperature from held-out labels, drift references."""
    draft, calibration, arrays = _calibrated(recipe, material, draft, crossed)
    fields: dict[str, Any] = {"anomaly": calibration, "reference": reference.FILE}
    calibrated = _calibrated_classifier(material, draft.bundle, crossed)
    if calibrated is not None:
        fields["classifier"] = calibrated
    held_out = material.calibration is not material.target  # or a head has learnt from them
    new = held_out or recipe.encoder_is_given
    arrays |= drift.reference(draft.bundle, material.calibration, calibrated, new)
    if held_out:
        arrays |= sets.reference(draft.bundle, material.calibration, calibrated)
    return draft.with_references(fields, arrays)


def _calibrated_classifier(material: Material, bundle: Bundle, crossed: Crossed | None) -> Classifier | None:
    """Its temperature and, of labels of which an image may have several, their thresholds."""
    if crossed is not None:
        return _fitted_classifier(material, crossed.logits[0], crossed.labels)
    parts = material.calibrates_labels
    found = [outputs_of(bundle, part, "temperature", ("logits",)).logits for part in parts]
    if found[0] is None:
        return None
    logits = np.concatenate([each for each in found if each is not None])
    return _fitted_classifier(material, logits, np.concatenate([part.truth for part in parts]))


def _fitted_classifier(material: Material, logits: np.ndarray, truth: np.ndarray) -> Classifier:
    """From logits of images that were not learnt from."""
    if truth.ndim == 1:
        return _classifier(material, temperature.fit(logits, truth))
    return _classifier(material, *label_thresholds.fit_with_temperature(logits, truth))


def _calibrated(
    recipe: Recipe, material: Material, draft: Draft, crossed: Crossed | None
) -> tuple[Draft, Anomaly, dict[str, np.ndarray]]:
    """(the draft, with a memory of patches if the score reads one; the score; arrays of the reference file)."""
    asked, rate, levels = recipe.anomaly, recipe.false_alarm_rate, draft.exported.levels
    marking = isinstance(recipe.transfer, PasteMode)
    if asked.folds:
        normals = material.calibration
        if material.folds is None:
            folds, how = folds_of(normals, asked.folds, recipe.split, recipe.seed)
            say(f"{len(normals):,} normal images in {asked.folds} folds, {how}")
        else:
            folds = material.folds.numbers[0]
        out_of_fold, peaks = None, {}
        if marking:
            across = marks.across(draft.bundle, normals, folds)
            draft = draft.with_patches(marks.to_onnx(_graph(draft), across.levels, OPSET))
            out_of_fold, peaks = across.distances, {PEAKS: across.peaks}
        elif PATCHES in asked.distances:
            found = patches.across(draft.bundle, normals, levels, folds, count=asked.patches, opset=OPSET)
            draft = draft.with_patches(patches.to_onnx(found.memory, _graph(draft), OPSET))
            out_of_fold, peaks = found.distances, {PEAKS: found.peaks}
        across_folds = anomaly.fit_bundle_across(
            draft.bundle,
            normals,
            asked.distances,
            folds,
            false_alarm_rate=rate,
            patch_distances=out_of_fold,
            raw=None if crossed is None else crossed.distances,
        )
        return replace(draft, scores=across_folds.scores), across_folds.anomaly, across_folds.arrays | peaks
    if marking:
        draft = draft.with_patches(marks.to_onnx(_graph(draft), np.zeros(1), OPSET))
    elif PATCHES in asked.distances:
        fitted_on, _ = distances.fitted_and_scaled(len(material.train))
        read = patches.read_parts(draft.bundle, material.train.take(fitted_on), levels, "patches")
        memory = patches.fit([read], levels, asked.patches, "patches")
        draft = draft.with_patches(patches.to_onnx(memory, _graph(draft), OPSET))
    calibration, arrays = anomaly.fit_to_bundle(
        draft.bundle,
        material.train,
        material.calibration,
        distances=asked.distances,
        false_alarm_rate=rate,
    )
    return draft, calibration, arrays | patches.peaks_of(draft.bundle, material.calibration)


def _graph(draft: Draft) -> Graph:
    return patches.graph_of(draft.exported.graphs.encoder)


def in_integers(
    recipe: Recipe, material: Material, exported: Draft, scored: Draft, crossed: Crossed | None = None
) -> Draft:
    """The draft in int8, its score fitted anew, if the recipe asks for it and what floats can do holds; else `scored`.

    `exported` is the draft in floats before its score was fitted.
    """
    if not recipe.export.int8:
        return scored
    smaller = Draft.of(recipe.name, quantised(exported.exported, material.train), exported.fields)
    smaller = fit_score(recipe, material, smaller, crossed)
    kept, costs = gate(
        scored.bundle,
        smaller.bundle,
        material.validation,
        labelled=material.labelled_held_out,
        limits=recipe.export,
    )
    return replace(smaller if kept else scored, notes=(*exported.notes, *costs))


def measure(material: Material, draft: Draft, crossed: Crossed | None = None) -> Measured:
    """Metrics on the test images, with the code that serves. The latent map shows these images too.

    Without a test part, what is said of the target's images are the folds' logits and scores.
    """
    test, bundle = material.test, draft.bundle
    outputs = outputs_of(bundle, test, f"evaluate {bundle.name}")
    if not material.tested:
        outputs = unseen(outputs, crossed, draft.scores)
    found = defects.measure(bundle, test, outputs.scores)
    if material.tested:
        how = test_part(test, bundle.manifest)
        metrics = bundle_metrics(bundle, test, how, outputs=outputs, train=material.train, found=found)
    else:
        how = f"all {len(test):,} images of {bundle.manifest.provenance.target}, each by what learnt from other folds"
        metrics = [
            each
            for each in bundle_metrics(bundle, test, how, outputs=outputs, found=found)
            if each.name not in _BY_CONSTRUCTION
        ]
    if crossed is not None:
        across = metrics_across(crossed)
        replaced = set() if material.tested else {each.name.removesuffix(ACROSS) for each in across}
        metrics = [*(each for each in metrics if each.name not in replaced), *across]
    labels = test.labels if bundle.manifest.classifier else np.array([])
    shown = latent_map.fit(outputs.encoded["embedding"], labels).arrays()
    return Measured(draft.with_references({"metrics": (*metrics, *draft.notes)}, shown), outputs, found)


def with_images(recipe: Recipe, material: Material, draft: Draft) -> Draft:
    """With an index of images that were learnt from, and with codes by which a head is fitted and judged again."""
    bundle, asked, files = draft.bundle, recipe.export, {}
    if asked.index:
        files = examples.index(bundle, material.train, asked.thumbnails, most=asked.index)
    train, held_out = material.train, material.labelled_held_out
    if material.folds is not None:  # none is held out: half of the images to fit by, half to judge by
        train, held_out = split(material.target, (len(material.target) // 2,), recipe.seed)
    elif recipe.transfer.adapts:
        train = material.source_train
    files_of_codes = codes.codes(bundle, train, held_out, asked.codes)
    fields = {
        "index": INDEX_FILE if asked.index else None,
        "codes": codes.FILE if files_of_codes else None,
    }
    exported = replace(draft.exported, files={**draft.exported.files, **files, **files_of_codes})
    return replace(draft, exported=exported, fields=draft.fields | fields)


def unseen(outputs: Outputs, crossed: Crossed | None, scores: np.ndarray | None = None) -> Outputs:
    """Outputs on the target's images, with what was said of them by networks that have not learnt from them."""
    if crossed is None:
        return replace(outputs, logits=None, errors=None, scores=scores)
    given = crossed.given[0] if crossed.several else None
    return replace(outputs, logits=crossed.logits[0], errors=None, scores=scores, given=given)


# Rates on the images that the thresholds come from.
_BY_CONSTRUCTION = ("false_alarm_rate", "false_region_rate")
