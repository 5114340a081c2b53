"""A whole recipe: data → pretrain → head → decoder → calibrate → export → measure → publish."""

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
from training import calibrate, evaluate
from training.card import card
from training.data import ImageSet, load, split
from training.errors import TrainingError
from training.export import OPSET, Exported, npz, publish, rehearse
from training.fit import Journal
from training.networks import Autoencoder, build
from training.progress import say
from training.recipe import Recipe
from training.transfer import codes, finetune_decoder, in_batches, pretrain, train_head

MOST_ACCURACY_LOST = 0.001  # between torch and the exported bundle


def run(recipe: Recipe, models: Path, folder: Path) -> Path:
    """The published bundle; `folder` keeps the configuration, the metrics and the weights of the run."""
    start, commit = time.monotonic(), _commit()
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
    journal = Journal(folder / "metrics.jsonl")
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)

    spec = recipe.input.spec()
    source, target = load(recipe.source, "train", spec), load(recipe.target, "train", spec)
    test = load(recipe.target, "test", spec)
    sizes = (recipe.split.validation, recipe.split.calibration)
    train, validation, calibration = split(target, sizes, recipe.seed)
    source_train, source_validation = split(source, sizes[:1], recipe.seed)

    net = build(recipe.network, spec.shape)
    pretrain(net, source_train, source_validation, recipe.pretrain, journal)
    head = train_head(net, train, validation, recipe.head, journal)
    finetune_decoder(net, train, validation, recipe.decoder, journal)
    torch.save(
        {"encoder": net.encoder.state_dict(), "decoder": net.decoder.state_dict(), "head": head.state_dict()},
        folder / "weights.pt",
    )

    exported = Exported(net, head, spec, len(target.classes))
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
            **{p: version(p) for p in ("torch", "onnx", "onnxruntime", "numpy", "pillow")},
        },
        opset=OPSET,
    )
    rest: dict[str, Any] = {
        "title": recipe.title,
        "classifier": Classifier(labels=target.classes, temperature=1.0),
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
    found.append(_torch_accuracy(net, head, test, found))
    rest["metrics"] = tuple(found)
    minutes = (time.monotonic() - start) / 60
    files["card.md"] = card(bundle.manifest.model_copy(update=rest), recipe, minutes).encode()
    path = publish(models, recipe.name, exported, rest, files)
    journal.write(stage="test", **{metric.name: metric.value for metric in found})
    for metric in found:
        say(f"{metric.name} {metric.value:.4f} ({metric.how})")
    say(f"{path} is ready after {minutes:.1f} minutes; the run is in {folder}")
    return path


def _calibrate(
    bundle: Bundle, train: ImageSet, validation: ImageSet, calibration: ImageSet, recipe: Recipe
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Temperature from the validation images, anomaly score from training and calibration images."""
    logits = evaluate.run(bundle, validation, "temperature").logits
    assert logits is not None
    normals = []
    for data in (train, calibration):
        outputs = evaluate.run(bundle, data, "anomaly")
        assert outputs.reconstructions is not None
        normals.append((data.images, outputs.encoded["embedding"], outputs.reconstructions))
    anomaly, reference = calibrate.anomaly(normals[0], normals[1], "embedding", recipe.false_alarm_rate)
    temperature = calibrate.temperature(logits, validation.labels)
    fields = {
        "classifier": Classifier(labels=train.classes, temperature=temperature),
        "anomaly": anomaly,
        "reference": "reference.npz",
    }
    return fields, {"reference.npz": npz(reference)}


def _torch_accuracy(net: Autoencoder, head: nn.Module, test: ImageSet, found: list[Metric]) -> Metric:
    """The same accuracy on the torch modules; the two must agree, or nothing is published."""
    logits = in_batches(head, codes(net, test)).numpy()
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
