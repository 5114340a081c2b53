"""A whole recipe: data → pretrain → labels → decoder → calibrate → export → measure → publish."""

import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from app.bundle import Bundle
from app.bundle.manifest import Classifier, Metric, Provenance
from training import calibrate, evaluate, inspect
from training.card import card
from training.checkpoint import Checkpoints
from training.data import ImageSet
from training.errors import TrainingError
from training.export import OPSET, Exported, publish, rehearse
from training.fit import Journal
from training.networks import build
from training.progress import say
from training.recipe import Recipe
from training.splits import train_and_held_out, train_and_test, train_and_validation
from training.transfer import Workshop, finetune_decoder, in_batches, learn_labels, pretrain, read

MOST_ACCURACY_LOST = 0.001  # between torch and the exported bundle
RECIPE_FILE, DONE_FILE = "recipe.json", "bundle.txt"


def open_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """A new run's folder; or, to resume, one that holds the same recipe unfinished."""
    resolved = recipe.model_dump_json(indent=2) + "\n"
    if not resume:
        if folder.exists():
            raise TrainingError(f"{folder} is there already: go on with it with --resume, or name another with --run")
        folder.mkdir(parents=True)
        (folder / RECIPE_FILE).write_text(resolved)
        return
    if not (folder / RECIPE_FILE).is_file():
        raise TrainingError(f"{folder}: no run to resume there; begin it without --resume")
    if (folder / RECIPE_FILE).read_text() != resolved:
        raise TrainingError(f"{folder}: a run of another recipe, or of other --set values; resume it with its own")
    if (folder / DONE_FILE).is_file():
        raise TrainingError(f"{folder}: finished, as {(folder / DONE_FILE).read_text().strip()}; nothing is left to do")


def run(recipe: Recipe, models: Path, folder: Path, resume: bool = False) -> Path:
    """The published bundle; `folder` keeps the configuration, the metrics and the weights of the run."""
    start, commit = time.monotonic(), _commit()
    open_folder(folder, recipe, resume)
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())

    spec = recipe.input.spec()
    target, test = train_and_test(recipe.target, spec, recipe.split, recipe.seed)
    if test.classes != target.classes:
        raise TrainingError(
            f"{recipe.target}: its test part has the classes {', '.join(test.classes) or 'none'}, "
            f"its training part {', '.join(target.classes) or 'none'}: they must be the same"
        )
    for warning in (*inspect.class_warnings(target), *inspect.duplicate_warnings(target, test)):
        say(f"note: {warning}")
    train, validation, calibration = train_and_held_out(target, recipe.split, recipe.seed)
    # Calibration images are seen by nothing that is trained: where source and target are one, pretraining has the rest.
    source, source_train, source_validation = target, train, validation
    if recipe.source != recipe.target:
        source, _ = train_and_test(recipe.source, spec, recipe.split, recipe.seed)
        source_train, source_validation = train_and_validation(source, recipe.split, recipe.seed)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(recipe.network, spec.shape)
    for part in (net.encoder, net.decoder, net.pool):
        part.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    journal, checkpoints = Journal(folder / "metrics.jsonl"), Checkpoints(folder / "checkpoints")
    shop = Workshop(net, recipe.objective, journal, checkpoints, device, recipe.precision)
    mode, reads = recipe.transfer.mode, recipe.transfer.reads
    if mode not in ("scratch", "random-frozen"):
        pretrain(shop, source_train, source_validation, recipe.pretrain)
    head = None if mode == "decoder" else learn_labels(shop, train, validation, recipe.transfer)
    finetune_decoder(shop, train, validation, recipe.decoder)

    shop = Workshop(net, recipe.objective, journal, checkpoints, torch.device("cpu"), "fp32")
    exported = Exported(net, head, spec, reads if head else "embedding")
    final = {"encoder": net.encoder, "decoder": net.decoder} | ({"head": head} if head else {})
    torch.save({name: module.state_dict() for name, module in final.items()}, folder / "weights.pt")
    # A bundle is published with its manifest: of a folder it gives the name, not where it lies.
    data_names = {"source": Path(recipe.source).name, "target": Path(recipe.target).name}
    provenance = Provenance(
        recipe=recipe.model_copy(update=data_names).model_dump_json(),
        seed=recipe.seed,
        **data_names,
        data={
            "source/train": source.fingerprint(),
            "target/train": target.fingerprint(),
            "target/test": test.fingerprint(),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with the build's label, which the package's own version may lack
            **{p: version(p) for p in ("onnx", "onnxruntime", "numpy", "pillow")},
        },
        opset=OPSET,
    )
    rest: dict[str, Any] = {
        "title": recipe.title,
        "classifier": Classifier(labels=target.classes, temperature=1.0) if head else None,
        "anomaly": None,
        "reference": None,
        "metrics": (),
        "provenance": provenance,
    }
    # Twice rehearsed: bare, to calibrate on what the graphs give; calibrated, to be measured as it will be served.
    bare = rehearse(recipe.name, exported, rest, {})
    calibrated, files = _calibrate(bare, train, validation, calibration, recipe)
    rest |= calibrated
    bundle = rehearse(recipe.name, exported, rest, files)
    found = evaluate.metrics(bundle, test, f"all {len(test):,} test images of {provenance.target}")
    if head is not None:
        found.append(_torch_accuracy(shop, head, reads, test, found))
    rest["metrics"] = tuple(found)
    minutes = (time.monotonic() - start) / 60
    files["card.md"] = card(bundle.manifest.model_copy(update=rest), recipe, minutes).encode()
    path = publish(models, recipe.name, exported, rest, files)
    (folder / DONE_FILE).write_text(f"{path}\n")
    journal.write(stage="test", **{metric.name: metric.value for metric in found})
    for metric in found:
        say(f"{metric.name} {metric.value:.4f} ({metric.how})")
    say(f"{path} is ready after {minutes:.1f} minutes; the run is in {folder}")
    return path


def _calibrate(
    bundle: Bundle, train: ImageSet, validation: ImageSet, calibration: ImageSet, recipe: Recipe
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Temperature from the validation images, anomaly score from training and calibration images."""
    fields, files = calibrate.anomaly_part(bundle, train, calibration, recipe.false_alarm_rate)
    logits = evaluate.run(bundle, validation, "temperature").logits
    if logits is not None:
        temperature = calibrate.temperature(logits, validation.labels)
        fields["classifier"] = Classifier(labels=train.classes, temperature=temperature)
    return fields, files


def _torch_accuracy(shop: Workshop, head: nn.Module, reads: str, test: ImageSet, found: list[Metric]) -> Metric:
    """The same accuracy on the torch modules; the two must agree, or nothing is published."""
    logits = in_batches(head, read(shop, test, reads)).numpy()
    accuracy = float(np.mean(logits.argmax(axis=1) == test.labels))
    served = next(metric.value for metric in found if metric.name == "accuracy")
    if abs(accuracy - served) > MOST_ACCURACY_LOST:
        raise TrainingError(f"the exported bundle reaches {served:.4f}, torch {accuracy:.4f}: not published")
    return Metric(name="accuracy_in_torch", value=accuracy, images=len(test), how="the torch modules, the same images")


def _commit() -> str:
    """Of the source tree, with a mark if it was changed since; unknown outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"],  # noqa: S607 - whichever git the user has
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
