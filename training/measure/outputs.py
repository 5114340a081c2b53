"""A bundle's outputs for every image of a set, through the code that serves it."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP
from app.bundle.scoring import PATCHES, reconstruction_errors
from training.data.imageset import ImageSet
from training.data.storage import allocate
from training.measure import encodings, tiled
from training.progress import track

_BATCH = 128  # as many as one request may hold
_PIXELS = 1 << 21  # of a batch, where that is fewer images
EVERYTHING = ("embedding", "logits", "errors", "scores")


@dataclass(frozen=True)
class Outputs:
    """Per image, in the order of the set; outputs that were not wanted or that the bundle lacks are missing or None."""

    encoded: dict[
        str, np.ndarray
    ]  # (N, D) by tensor: the encoder's, thumbnail and patches; anomaly_map (N, rows, columns)
    logits: np.ndarray | None  # (N, labels)
    errors: np.ndarray | None  # (N,) reconstruction errors
    scores: np.ndarray | None  # (N,) anomaly scores
    given: np.ndarray | None = None  # (N, labels) bool: the labels of each, if not by the bundle's thresholds

    def take(self, rows: np.ndarray) -> "Outputs":
        encoded = {name: values[rows] for name, values in self.encoded.items()}
        others = (None if each is None else each[rows] for each in (self.logits, self.errors, self.scores, self.given))
        return Outputs(encoded, *others)


def outputs_of(bundle: Bundle, data: ImageSet, label: str, wanted: Collection[str] = EVERYTHING) -> Outputs:
    """In batches of the size of a request; only what is `wanted` is computed. `label` names the progress bar.

    `wanted` names tensors that anomaly distances read, and any of `logits`, `errors`, `scores` and `anomaly_map`.
    """
    if bundle.tiled:
        return _of_tiled(bundle, data, label, wanted)
    arrays: dict[str, np.ndarray] = {}
    encoder = {tensor.name for tensor in bundle.manifest.graphs.encoded}
    before = encodings.kept(bundle.encoder.digest, data.images)
    height, width, _ = bundle.manifest.input.shape
    size = max(1, min(_BATCH, _PIXELS // (height * width)))
    starts = range(0, len(data), size)
    for start in track(starts, label, len(starts)):
        part = slice(start, start + size)
        encoded = None if before is None else {name: points[part] for name, points in before.items()}
        for name, values in _batch(bundle, data.images[part], encoded, wanted).items():
            if name not in arrays:
                arrays[name] = allocate((len(data), *values.shape[1:]), values.dtype.type)
            arrays[name][part] = values
    if before is None and encoder <= set(arrays):
        encodings.keep(bundle.encoder.digest, data.images, {name: arrays[name] for name in encoder})
    logits, errors, scores = (arrays.pop(name, None) for name in ("logits", "errors", "scores"))
    return Outputs(arrays, logits, errors, scores)


def _of_tiled(bundle: Bundle, data: ImageSet, label: str, wanted: Collection[str]) -> Outputs:
    """Of pictures in tiles, which have embeddings, patch distances and scores alone; their maps: `maps_of`."""
    arrays: dict[str, np.ndarray] = {}
    scorer, scores = bundle.scorer if "scores" in wanted else None, None
    if scorer is not None or PATCHES in wanted:
        arrays[PATCHES] = tiled.measured(bundle, data, label).distances
    if scorer is not None:
        scores = scorer.combine(scorer.distances(arrays, None))
    if "embedding" in wanted:
        arrays["embedding"] = tiled.embeddings(bundle, data, label)
    return Outputs({name: values for name, values in arrays.items() if name in wanted}, None, None, scores)


def _batch(
    bundle: Bundle, images: np.ndarray, encoded: dict[str, np.ndarray] | None, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """`encoded` are the encoder's outputs, if they are known."""
    scorer = bundle.scorer if "scores" in wanted else None
    patches = not {ANOMALY_MAP, PATCHES}.isdisjoint(wanted) or (scorer is not None and scorer.reads_patches)
    if encoded is None or patches:  # the maps that patches are read from are never kept
        encoded = bundle.encode(images, patches=patches)
    if patches:
        encoded |= bundle.measure_patches(encoded)
    tensors = bundle.taken(images, encoded, {*wanted, *(scorer.tensors if scorer else ())})
    part = {name: values for name, values in tensors.items() if name in wanted}
    if ANOMALY_MAP in wanted:
        part[ANOMALY_MAP] = encoded[ANOMALY_MAP]
    if bundle.head is not None and "logits" in wanted:
        part["logits"] = bundle.logits(encoded)
    errors = None
    if bundle.decoder is not None and ("errors" in wanted or (scorer is not None and scorer.reconstructs)):
        errors = reconstruction_errors(images, bundle.reconstruct(encoded))
    if errors is not None and "errors" in wanted:
        part["errors"] = errors
    if scorer is not None:
        part["scores"] = scorer.combine(scorer.distances(tensors, errors))
    return part
