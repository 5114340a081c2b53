"""From a few images of each class to a bundle: another's encoder as it is, prototypes on what it gives. No torch."""

import json
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.bundle import SCHEMA_VERSION, Bundle, GraftError, InputSpec, Manifest, load, save
from app.bundle.bundle import CARD_FILE
from app.bundle.manifest import MANIFEST_FILE, Classifier, Graph, Graphs, Metric, Provenance, Tensor
from app.bundle.scoring import probabilities
from app.bundle.store import versions
from training.data.imageset import SUFFIXES, ImageSet, read_folder
from training.data.splits import split
from training.errors import TrainingError
from training.measure import evaluate
from training.progress import say
from training.publish.card import card_of_shots
from training.publish.provenance import commit
from training.recipe import DISTANCES
from training.score import anomaly, calibrate, drift, latent_map, prototypes
from training.shots import tasks

Reads = Literal["embedding", "features"]
FEWEST = 2  # images of a class: one to be left out, one to know it by
NORMALS = 100  # images from which on an anomaly score is fitted to them: half to fit, half to hold it to
_USUAL_RATE = 0.05  # of false alarms, where half of the images cannot hold the base's own
_MADE_BY = "graft"  # the key of a recipe that says so


@dataclass(frozen=True)
class Shots:
    """The images as a base takes them, and what its encoder gives of them."""

    base: Bundle
    folder: Path  # of the base
    images: ImageSet
    encoded: dict[str, np.ndarray]  # (N, D) by tensor


def graft(
    shots: Path, base: Path, models: Path, name: str | None, reads: Reads | None, distance: prototypes.Distance
) -> Path:
    """The published bundle, the next version of models/<name>/."""
    name = name or _slug(shots)
    _refuse_taken(models / name)
    chosen = _nearest(shots, base)
    tensor = reads or _usual(chosen.base)
    if tensor not in chosen.encoded:
        raise TrainingError(
            f"--reads {tensor}: {_called(chosen.base)} gives no {tensor}; use --reads embedding, or another --base"
        )
    points, labels = chosen.encoded[tensor], chosen.images.labels
    blocks = [int(np.prod(each)) for each in chosen.base.manifest.feature_maps] if tensor == "features" else []
    learnt = prototypes.fit(points, labels, distance, blocks)
    logits = prototypes.left_out(points, labels, distance, blocks)
    right = int((logits.argmax(axis=1) == labels).sum())
    temperature = modest_temperature(logits, right)

    classifier = Classifier(labels=chosen.images.classes, temperature=temperature)
    fields, files = _from_base(chosen, tensor, learnt, classifier)
    calibrated, arrays, told = _calibrated(chosen)
    arrays |= latent_map.fit(chosen.encoded["embedding"], labels).arrays()
    low, high = evaluate.share_interval(right, len(labels))
    how = f"each image judged by the prototypes of the others; 95 % interval {low:.4f} to {high:.4f}"
    metric = Metric(name="left_out_accuracy", value=right / len(labels), images=len(labels), how=how)
    recipe = {"base": _called(chosen.base), "digest": chosen.base.digest, "reads": tensor, "distance": distance}
    fields |= {
        "title": f"{shots.resolve().name}, by prototypes of {len(labels)} images on the encoder of {chosen.base.name}",
        "reference": calibrate.REFERENCE_FILE,
        "metrics": (metric,),
        "provenance": _provenance(chosen, shots, recipe),
        **calibrated,
    }
    files[calibrate.REFERENCE_FILE] = anomaly.to_file(arrays)
    base_manifest, counts = chosen.base.manifest, np.bincount(labels).tolist()
    counted = dict(zip(classifier.labels, counts, strict=True))
    files[CARD_FILE] = card_of_shots(
        fields["title"], base_manifest, _called(chosen.base), counted, metric, classifier, told
    ).encode()
    before = chosen.base.manifest.golden.outputs
    tolerances = {each: before[each] for each in fields["graphs"].tensors() if each in before}
    tolerances["logits"] = before[tensor]
    path = save(models, name, fields, files, tolerances=tolerances)
    say(told)
    say(
        f"left out and judged by the others, {right} of {len(labels)} images were named rightly: {metric.value:.1%}, "
        f"95 % interval {low:.1%} to {high:.1%}"
    )
    return path


def read_shots(folder: Path, spec: InputSpec) -> ImageSet:
    """A folder for each class; of so few images each counts, and none is left out in silence."""
    folder = folder / "train" if (folder / "train").is_dir() else folder
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; give one with a folder of images in it for each class")
    for entry in sorted(folder.iterdir()):
        is_class = entry.is_dir() and not entry.name.startswith(".")
        if is_class and not any(path.suffix.lower() in SUFFIXES for path in entry.iterdir()):
            raise TrainingError(f"{entry}: no images in it; put some there, or remove the folder")
    images = read_folder(folder, spec, most_broken=0)
    if len(images.classes) < 2:
        found = f"one class, {images.classes[0]}" if images.classes else "images, but no folders of them"
        raise TrainingError(
            f"{folder}: {found}; put the images of each class, of two at least, into a folder of its own"
        )
    counts = np.bincount(images.labels)
    if counts.min() < FEWEST:
        single = images.classes[int(counts.argmin())]
        raise TrainingError(f"{folder / single}: a single image; {FEWEST} are needed, 5 are better")
    return images


def modest_temperature(logits: np.ndarray, right: int) -> float:
    """At which the mean confidence in images that were left out is (right + 1) / (images + 2).

    So much an accuracy can be believed in after so few trials (Laplace's rule); by likelihood alone, all of them right
    would make it certain of everything.
    """
    wanted = (right + 1) / (len(logits) + 2)
    low, high = np.log(1e-3), np.log(1e3)  # as a manifest allows
    while high - low > 1e-4:
        middle = (low + high) / 2
        confidence = probabilities(logits, float(np.exp(middle))).max(axis=1).mean()
        low, high = (middle, high) if confidence > wanted else (low, middle)
    return float(np.exp((low + high) / 2))


def _slug(shots: Path) -> str:
    found = re.sub(r"[^a-z0-9._-]+", "-", shots.resolve().name.lower()).strip("-._")[:64]
    if not found:
        raise TrainingError(f"{shots}: a model cannot be called so; give it a --name")
    return found


def _refuse_taken(home: Path) -> None:
    """A model that was trained is not followed by a version that tells other things apart."""
    if not home.is_dir() or not versions(home):
        return
    newest = home / str(versions(home)[-1])
    manifest = Manifest.parse((newest / MANIFEST_FILE).read_bytes(), f"{home.name}/{newest.name}")
    if not _is_grafted(manifest):
        raise TrainingError(
            f"{newest}: a model of that name is there, which was not made from shots ({manifest.title}); "
            "give this one another with --name"
        )


def _is_grafted(manifest: Manifest) -> bool:
    return manifest.provenance.recipe.startswith(f'{{"{_MADE_BY}": ')


def _nearest(shots: Path, base: Path) -> Shots:
    """The one bundle there is; of several that whose own images are most like the shots, to its own encoder."""
    found = tasks.bundles_in(base)
    if len(found) == 1:
        return _encoded(shots, found[0], load(found[0]))
    nearest, told = dict[float, Shots](), []
    for folder in found:
        try:
            bundle = load(folder)
        except GraftError as error:
            say(f"passed over: {error}")
            continue
        if _is_grafted(bundle.manifest) or bundle.drift is None:
            say(f"passed over: {_called(bundle)} carries no codes of images that it was trained for")
            continue
        candidate = _encoded(shots, folder, bundle)
        far = tasks.distance(candidate.encoded["embedding"], bundle.drift.codes)
        nearest[far] = candidate
        told.append(f"{_called(bundle)} {far:.2f}")
    if not nearest:
        raise TrainingError(
            f"--base {base}: no bundle in it that a nearest can be chosen from; give one, as models/NAME/1"
        )
    chosen = nearest[min(nearest)]
    say(f"base: {_called(chosen.base)}, whose images lie nearest to these (distances: {', '.join(told)})")
    return chosen


def _encoded(shots: Path, folder: Path, bundle: Bundle) -> Shots:
    images = read_shots(shots, bundle.manifest.input)
    return Shots(bundle, folder, images, evaluate.run(bundle, images, "encode", ("embedding", "features")).encoded)


def _called(bundle: Bundle) -> str:
    return f"{bundle.name}@{bundle.version}"


def _usual(base: Bundle) -> Reads:
    """What the base's own head reads; of a base without one, the maps of every stage if it gives them."""
    head, given = base.manifest.graphs.head, {tensor.name for tensor in base.manifest.graphs.encoder.outputs}
    if head is not None:
        return "features" if head.input.name == "features" else "embedding"
    return "features" if "features" in given else "embedding"


def _from_base(
    shots: Shots, reads: str, learnt: prototypes.Prototypes, classifier: Classifier
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(the manifest's fields that follow from the base and the prototypes, the graphs' files)."""
    base = shots.base.manifest
    taken = next(tensor for tensor in base.graphs.encoder.outputs if tensor.name == reads)
    logits = Tensor(name="logits", dtype="float32", shape=(-1, len(classifier.labels)))
    head = Graph(file="head.onnx", input=taken, outputs=(logits,))
    kept = [graph.file for graph in (base.graphs.encoder, base.graphs.decoder) if graph is not None]
    files = {file: (shots.folder / file).read_bytes() for file in kept}
    files[head.file] = prototypes.to_onnx(learnt, head, base.provenance.opset)
    fields = {
        "schema_version": SCHEMA_VERSION,
        "input": base.input,
        "latent_size": base.latent_size,
        "variational": base.variational,
        "feature_maps": base.feature_maps,
        "graphs": Graphs(encoder=base.graphs.encoder, decoder=base.graphs.decoder, head=head, explain=None),
        "classifier": classifier,
    }
    return fields, files


def _calibrated(shots: Shots) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """(the manifest's anomaly, its arrays and those of drift, what became of the score in words).

    The base's threshold is about the base's images, and says nothing of these.
    """
    base, count = shots.base, len(shots.images)
    if count < NORMALS:
        told = f"no anomaly score: {count} images are too few to hold one to, {NORMALS} would do"
        return {"anomaly": None}, {}, told
    stated = base.manifest.anomaly
    fitted_on, held_out = split(shots.images, (count // 2,), seed=0)
    rate = stated.false_alarm_rate if stated else _USUAL_RATE
    if rate * (len(held_out) + 1) < 1:
        rate = _USUAL_RATE
    usual = [each for each in DISTANCES if each != "reconstruction" or base.decoder is not None]
    distances = [each.name for each in stated.distances] if stated else usual
    fields, arrays = calibrate.anomaly_part(base, fitted_on, held_out, distances, rate)
    arrays |= drift.reference(base, held_out, None)
    told = (
        f"the anomaly score was fitted anew on {len(fitted_on)} of the images, and on the other {len(held_out)} held "
        f"to calling {rate:.0%} of such images anomalous"
    )
    return {"anomaly": fields["anomaly"]}, arrays, told


def _provenance(shots: Shots, folder: Path, recipe: dict[str, str]) -> Provenance:
    base = shots.base.manifest.provenance
    return Provenance(
        recipe=json.dumps({_MADE_BY: recipe}),
        seed=0,
        source=_called(shots.base),
        target=folder.resolve().name,
        data={"shots": shots.images.fingerprint()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions={
            "python": platform.python_version(),
            **{package: version(package) for package in ("onnx", "onnxruntime", "numpy", "pillow")},
        },
        opset=base.opset,
    )
