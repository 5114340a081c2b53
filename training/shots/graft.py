"""From a few images of each class to a bundle: the encoder of another, unchanged, and prototypes on it. No torch."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.bundle import Bundle, Manifest, save
from app.bundle.bundle import CARD_FILE
from app.bundle.index import FILE as INDEX_FILE
from app.bundle.manifest import MANIFEST_FILE, Anomaly, Classifier, Graph, Graphs, Metric, Provenance, Tensor
from app.bundle.scoring import PATCHES
from app.bundle.store import versions as versions_in
from training.data.splits import split
from training.errors import TrainingError, printable
from training.measure import intervals
from training.progress import say
from training.publish.card import card_of_shots
from training.publish.provenance import commit, versions
from training.score import anomaly, distances, drift, evidence, examples, latent_map, prototypes, reference, temperature
from training.shots.bases import MADE_BY, Shots, called, choose, is_grafted

Reads = Literal["embedding", "features"]
NORMALS = 100  # images from which on an anomaly score is fitted: half to fit it, half to calibrate it
_USUAL_RATE = 0.05  # of false alarms, where half of the images are too few for the base's own


def graft(
    shots: Path,
    *,
    base: Path,
    models: Path,
    name: str | None = None,
    reads: Reads | None = None,
    distance: prototypes.Distance = "mahalanobis",
) -> Path:
    """The published bundle, the next version of models/<name>/."""
    name = name or _name_of(shots)
    _refuse_taken(models / name)
    chosen = choose(shots, base)
    manifest, labels = chosen.base.manifest, chosen.images.labels
    tensor = reads or usual_tensor(chosen.base)
    if tensor not in chosen.encoded:
        raise TrainingError(
            f"--reads {tensor}: {called(chosen.base)} gives no {tensor}; use --reads embedding, or another --base"
        )
    points = chosen.encoded[tensor]
    blocks = [int(np.prod(each)) for each in manifest.feature_maps] if tensor == "features" else []
    learnt = prototypes.fit(points, labels, distance, blocks)
    left_out = prototypes.left_out(points, labels, distance, blocks)
    right = int((left_out.argmax(axis=1) == labels).sum())

    classifier = Classifier(
        labels=chosen.images.classes, temperature=temperature.fit(left_out, labels, temperature.PROTOTYPES)
    )
    fields, files = _from_base(chosen, tensor, learnt, classifier)
    calibration, arrays, calibrated = _calibrated(chosen)
    arrays |= latent_map.fit(chosen.encoded["embedding"], labels).arrays()
    low = intervals.at_least(right, len(labels))
    how = f"each image classified by the prototypes of the others; on new images at least {low:.4f} (95 % confidence)"
    metric = Metric(name="left_out_accuracy", value=right / len(labels), images=len(labels), how=how)
    recipe = {"base": called(chosen.base), "digest": chosen.base.digest, "reads": tensor, "distance": distance}
    shown = printable(shots.resolve().name)
    fields |= {
        "title": f"{shown}, by prototypes of {len(labels)} images on the encoder of {chosen.base.name}",
        "reference": reference.FILE,
        "index": INDEX_FILE,
        "metrics": (metric,),
        "provenance": _provenance(chosen, shots, recipe),
        "anomaly": calibration,
    }
    files |= examples.index(chosen.base, chosen.images, thumbnails=False)
    files[reference.FILE] = reference.to_bytes(arrays)
    files[CARD_FILE] = card_of_shots(
        title=fields["title"],
        base=manifest,
        called=called(chosen.base),
        counts=dict(zip(classifier.labels, np.bincount(labels).tolist(), strict=True)),
        metric=metric,
        classifier=classifier,
        notes=calibrated,
    ).encode()
    before = manifest.golden.outputs
    tolerances = {each: before[each] for each in fields["graphs"].tensors() if each in before}
    tolerances |= dict.fromkeys(("logits", "evidence"), before[tensor])
    path = save(models, name, fields, files, tolerances=tolerances)
    say(calibrated)
    say(
        f"left out in turn, {right} of {len(labels)} images were classified correctly: {metric.value:.1%}; "
        f"on new images at least {low:.1%} (95 % confidence)"
    )
    return path


def _name_of(shots: Path) -> str:
    found = re.sub(r"[^a-z0-9._-]+", "-", shots.resolve().name.lower()).strip("-._")[:64]
    if not found:
        raise TrainingError(f"{shots}: no model can have this name; give one with --name")
    return found


def _refuse_taken(home: Path) -> None:
    """A trained model gets no next version with other classes."""
    if not home.is_dir() or not versions_in(home):
        return
    newest = home / str(versions_in(home)[-1])
    manifest = Manifest.parse((newest / MANIFEST_FILE).read_bytes(), f"{home.name}/{newest.name}")
    if not is_grafted(manifest):
        raise TrainingError(
            f"{newest}: this model was not made from shots ({manifest.title}); give the new one another --name"
        )


def usual_tensor(base: Bundle) -> Reads:
    """The tensor that the base's own head reads; without a head, features if the encoder has them."""
    head, outputs = base.manifest.graphs.head, {tensor.name for tensor in base.manifest.graphs.encoded}
    if head is not None:
        return "features" if head.input.name == "features" else "embedding"
    return "features" if "features" in outputs else "embedding"


def _from_base(
    shots: Shots, reads: str, learnt: prototypes.Prototypes, classifier: Classifier
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(manifest fields that follow from base and prototypes, files of the graphs)."""
    base = shots.base.manifest
    taken = next(tensor for tensor in base.graphs.encoder.outputs if tensor.name == reads)
    logits = Tensor(name="logits", dtype="float32", shape=(-1, len(classifier.labels)))
    head = Graph(file="head.onnx", input=taken, outputs=(logits,))
    kept = [graph.file for graph in (base.graphs.encoder, base.graphs.decoder) if graph is not None]
    files = {file: (shots.folder / file).read_bytes() for file in kept}
    files[head.file] = prototypes.to_onnx(learnt, head, base.provenance.opset)
    explain = _explain(base.graphs, reads, learnt, len(classifier.labels))
    if explain is not None and learnt.linear is not None:
        files[explain.file] = evidence.to_onnx(learnt.linear, learnt.centre, explain, base.provenance.opset)
    fields = {
        "input": base.input,
        "latent_size": base.latent_size,
        "variational": base.variational,
        "feature_maps": base.feature_maps,
        "graphs": Graphs(encoder=base.graphs.encoder, decoder=base.graphs.decoder, head=head, explain=explain),
        "classifier": classifier,
    }
    return fields, files


def _explain(graphs: Graphs, reads: str, learnt: prototypes.Prototypes, labels: int) -> Graph | None:
    """Where the head is linear on the average of a map that the encoder gives."""
    averaged = evidence.map_of(graphs.encoder, reads)
    return evidence.graph(averaged, labels) if averaged and learnt.linear is not None else None


def _calibrated(shots: Shots) -> tuple[Anomaly | None, dict[str, np.ndarray], str]:
    """(calibration, arrays of score and drift, a message about the score).

    The base's own threshold was calibrated on the base's images: it does not hold for these.
    """
    base, count = shots.base, len(shots.images)
    if count < NORMALS:
        return None, {}, f"no anomaly score: {count} images are too few to calibrate one, {NORMALS} are enough"
    stated = base.manifest.anomaly
    fitted_on, held_out = split(shots.images, (count // 2,), seed=0)
    rate = stated.false_alarm_rate if stated else _USUAL_RATE
    if rate * (len(held_out) + 1) < 1:
        rate = _USUAL_RATE
    usual = [name for name in distances.usual(base) if name != PATCHES]  # the base remembers patches of other images
    calibration, arrays = anomaly.fit_to_bundle(
        base, fitted_on, held_out, distances=usual or ["embedding.mahalanobis"], false_alarm_rate=rate
    )
    arrays |= drift.reference(base, held_out, None)
    message = (
        f"the anomaly score was fitted anew on {len(fitted_on)} of the images; on the other {len(held_out)} it was "
        f"calibrated to call {rate:.0%} of such images anomalous"
    )
    return calibration, arrays, message


def _provenance(shots: Shots, folder: Path, recipe: dict[str, str]) -> Provenance:
    base = shots.base.manifest.provenance
    return Provenance(
        recipe=json.dumps({MADE_BY: recipe}),
        seed=0,
        source=called(shots.base),
        target=printable(folder.resolve().name),
        data={"shots": shots.images.fingerprint()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions=versions(),
        opset=base.opset,
        weights=base.weights,
    )
