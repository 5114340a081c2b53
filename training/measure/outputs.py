"""What a bundle's graphs give of every image of a set, through the code that serves it."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.scoring import reconstruction_errors
from training.data.imageset import ImageSet
from training.data.storage import allocate
from training.progress import track

_BATCH = 128  # what one request may hold
EVERYTHING = ("embedding", "logits", "errors", "scores")


@dataclass(frozen=True)
class Outputs:
    """Of every image of a set, in its order; what was not asked for, or cannot be had, is not there."""

    encoded: dict[str, np.ndarray]  # (N, D) of the encoder's tensors, and of the image's own
    logits: np.ndarray | None  # (N, labels)
    errors: np.ndarray | None  # (N,) of the reconstruction
    scores: np.ndarray | None  # (N,) of anomaly


def outputs_of(bundle: Bundle, data: ImageSet, what: str, wanted: Collection[str] = EVERYTHING) -> Outputs:
    """In batches as a request holds them; what is not wanted is not computed.

    `wanted` are tensors that anomaly distances take, and of `logits`, `errors` and `scores` those that the bundle
    can give.
    """
    found: dict[str, np.ndarray] = {}
    starts = range(0, len(data), _BATCH)
    for start in track(starts, what, len(starts)):
        images = data.images[start : start + _BATCH]
        for name, part in _batch(bundle, images, wanted).items():
            if name not in found:
                found[name] = allocate((len(data), *part.shape[1:]), part.dtype.type)
            found[name][start : start + len(part)] = part
    logits, errors, scores = (found.pop(name, None) for name in ("logits", "errors", "scores"))
    return Outputs(found, logits, errors, scores)


def _batch(bundle: Bundle, images: np.ndarray, wanted: Collection[str]) -> dict[str, np.ndarray]:
    encoded = bundle.encode(images)
    scorer = bundle.scorer if "scores" in wanted else None
    tensors = bundle.taken(images, encoded, {*wanted, *(scorer.tensors if scorer else ())})
    part = {name: values for name, values in tensors.items() if name in wanted}
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
