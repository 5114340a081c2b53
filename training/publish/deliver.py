"""From weights to a published bundle: calibrate → export → measure → report → publish."""

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from app.bundle import Bundle
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from app.bundle.manifest import Classifier, Metric, Provenance
from training.data.material import Material
from training.errors import TrainingError
from training.learning.inference import accuracy_of
from training.learning.journal import JOURNAL_FILE, Journal
from training.learning.stages import Learnt
from training.measure import evaluate, likelihood
from training.progress import say
from training.publish.card import card
from training.publish.onnx import OPSET, export, publish, rehearse
from training.publish.provenance import commit
from training.publish.quantise import quantised
from training.recipe import Recipe, tensors
from training.report import sections
from training.score import anomaly, calibrate, drift

MOST_ACCURACY_LOST = 0.001  # between torch and the exported fp32 bundle


def deliver(recipe: Recipe, material: Material, learnt: Learnt, models: Path, folder: Path) -> Path:
    """The published bundle; its report with pictures stays in `folder`, one without goes along."""
    start = time.monotonic()
    wanted = tensors(recipe.anomaly.distances)
    exported = export(learnt.net, learnt.head, material.spec, recipe.transfer.reads, "features" in wanted)
    rest = _rest(recipe, material, labelled=learnt.head is not None)
    notes: list[Metric] = []
    # Twice rehearsed: bare, to calibrate on what the graphs give; calibrated, to be measured as it will be served.
    bare = rehearse(recipe.name, exported, rest, {})
    if learnt.head is not None:
        notes.append(_torch_accuracy(recipe, bare, learnt, material))
    if recipe.trains_posterior:
        notes += likelihood.metrics(learnt.net, recipe.objective, material.test)
    if recipe.export.int8:
        smaller = quantised(exported, material.train)
        in_integers = rehearse(recipe.name, smaller, rest, {})
        kept, told = _gate(recipe, bare, in_integers, material)
        notes.append(told)
        if kept:
            exported, bare = smaller, in_integers
    calibrated, files = _calibrate(bare, material, recipe)
    rest |= calibrated
    bundle = rehearse(recipe.name, exported, rest, files)
    how = f"all {len(material.test):,} test images of {rest['provenance'].target}"
    outputs = evaluate.run(bundle, material.test, f"evaluate {bundle.name}")
    rest["metrics"] = (*evaluate.metrics(bundle, material.test, how, outputs, material.train), *notes)

    training = sum(line["seconds"] for line in sections.journal(folder / JOURNAL_FILE))
    manifest = bundle.manifest.model_copy(update={"metrics": rest["metrics"]})
    study = sections.study(bundle, manifest, recipe, material, outputs, folder)
    reference = anomaly.added(files[calibrate.REFERENCE_FILE], study.latent_map.arrays())
    files[calibrate.REFERENCE_FILE] = reference
    minutes = (training + time.monotonic() - start) / 60
    files[CARD_FILE] = card(manifest, _judges(material), minutes, machine()).encode()
    files[REPORT_FILE] = sections.page(study, pictures=False).encode()
    _keep(folder / REPORT_FILE, sections.page(study, pictures=True))
    path = publish(models, recipe.name, exported, rest, files)
    Journal(folder / JOURNAL_FILE).write(stage="test", **{metric.name: metric.value for metric in rest["metrics"]})
    for metric in rest["metrics"]:
        say(f"{metric.name} {metric.value:.4f} ({metric.how})")
    say(f"{path} is ready after {minutes:.1f} minutes; the run, and its report with pictures, are in {folder}")
    return path


def write_report(bundle: Bundle, recipe: Recipe, material: Material, folder: Path) -> Path:
    """Of a bundle that is published; its metrics are those that its manifest states."""
    outputs = evaluate.run(bundle, material.test, f"evaluate {bundle.name}")
    study = sections.study(bundle, bundle.manifest, recipe, material, outputs, folder)
    path = folder / REPORT_FILE
    _keep(path, sections.page(study, pictures=True))
    return path


def _keep(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from None


def _rest(recipe: Recipe, material: Material, labelled: bool) -> dict[str, Any]:
    """The manifest's fields that the graphs do not settle, as far as they are known before calibration."""
    # A bundle is published with its manifest: of a folder it gives the name, not where it lies.
    names = {"source": Path(recipe.source).name, "target": Path(recipe.target).name}
    network, split = recipe.network, recipe.split
    if network.weights is not None:
        network = network.model_copy(update={"weights": Path(network.weights).name})
    if split.groups is not None and split.groups.endswith(".csv"):
        split = split.model_copy(update={"groups": Path(split.groups).name})
    public = recipe.model_copy(update={**names, "network": network, "split": split})
    provenance = Provenance(
        recipe=public.model_dump_json(),
        seed=recipe.seed,
        **names,
        data=material.fingerprints(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with the build's label, which the package's own version may lack
            **{p: version(p) for p in ("onnx", "onnxruntime", "numpy", "pillow")},
        },
        opset=OPSET,
    )
    return {
        "title": recipe.title,
        "variational": recipe.trains_posterior,
        "classifier": Classifier(labels=material.target.classes, temperature=1.0) if labelled else None,
        "anomaly": None,
        "reference": None,
        "metrics": (),
        "provenance": provenance,
    }


def _torch_accuracy(recipe: Recipe, bare: Bundle, learnt: Learnt, material: Material) -> Metric:
    """On the torch modules; the fp32 graphs must agree, or nothing is published."""
    assert learnt.head is not None
    images, how = material.test, "the torch modules, the same images"
    if not len(images.labels):
        images, how = material.judges, f"the torch modules, {_judges(material)}"
    in_torch = accuracy_of(learnt.net, learnt.head, recipe.transfer.reads, images)
    served = evaluate.accuracy(bare, images, "agreement")
    if abs(in_torch - served) > MOST_ACCURACY_LOST:
        raise TrainingError(f"the exported graphs reach {served:.4f}, torch {in_torch:.4f}: not published")
    return Metric(name="accuracy_in_torch", value=in_torch, images=len(images), how=how)


def _judges(material: Material) -> str:
    of = "" if material.judges is material.validation else " of the source"
    return f"{len(material.judges):,} validation images{of}"


def _gate(recipe: Recipe, bare: Bundle, in_integers: Bundle, material: Material) -> tuple[bool, Metric]:
    """Whether the INT8 graphs hold their accuracy, and what was measured."""
    before, after = (evaluate.accuracy(each, material.validation, "int8 gate") for each in (bare, in_integers))
    kept = before - after <= recipe.export.most_lost + 1e-9  # shares of whole images
    verdict = "kept" if kept else "refused, fp32 is published"
    say(f"int8: {after:.4f} of validation images right, fp32 {before:.4f}: {verdict}")
    how = f"fp32 less int8 on validation images; at most {recipe.export.most_lost:g} is allowed: {verdict}"
    metric = Metric(name="int8_accuracy_lost", value=before - after, images=len(material.validation), how=how)
    return kept, metric


def _calibrate(bundle: Bundle, material: Material, recipe: Recipe) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Temperature from held-out labels, anomaly score from training and calibration images, drift from these."""
    fields, arrays = calibrate.anomaly_part(
        bundle, material.train, material.calibration, recipe.anomaly.distances, recipe.false_alarm_rate
    )
    logits = evaluate.run(bundle, material.judges, "temperature", ("logits",)).logits
    temperature = None
    if logits is not None:
        temperature = calibrate.temperature(logits, material.judges.labels)
        fields["classifier"] = Classifier(labels=material.target.classes, temperature=temperature)
    arrays |= drift.reference(bundle, material.calibration, temperature)
    return fields, {calibrate.REFERENCE_FILE: anomaly.to_file(arrays)}


def machine() -> str:
    """In words: the processor and how many of them, and the GPU if torch finds one."""
    name = platform.processor() or platform.machine()
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    except OSError:
        pass
    found = f"{os.cpu_count()} × {name}"
    return f"{found}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else found
