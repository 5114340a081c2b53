"""Runs a batch of mixed requests: the encoder once over all images, the other graphs on the rows that need them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite

import numpy as np

from app.bundle import tiles
from app.bundle.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP
from app.bundle.scoring import label_probabilities, likeliest_first, reconstruction_errors
from app.errors import NotFinite

Outputs = dict[str, np.ndarray]
EMBEDDING, LOGITS, EXPLANATION = "embedding", "logits", "explanation"
PROBABILITIES, ORDER = "probabilities", "order"  # computed together with the logits
RECONSTRUCTION, ERRORS, DISTANCES = "reconstruction", "errors", "distances"
NEAREST, NEAREST_DISTANCES = "nearest", "nearest_distances"  # (n, k) rows of the index, and how far they are


@dataclass(slots=True)
class OutputRequest:
    """The images of one request, or of a part of it, and the outputs that it needs."""

    images: np.ndarray  # (n, H, W, C) uint8
    outputs: frozenset[str]

    def __len__(self) -> int:
        return len(self.images)


def answer(bundle: Bundle, requests: Sequence[OutputRequest]) -> list[Outputs]:
    """For each request its outputs by name, (n, …) each; there may be more than it needs."""
    images = requests[0].images if len(requests) == 1 else np.concatenate([request.images for request in requests])
    explain = any(EXPLANATION in request.outputs for request in requests)
    scorer = bundle.scorer
    by_patches = {ANOMALY_MAP} | ({DISTANCES} if scorer is not None and scorer.reads_patches else set())
    patches = any(not by_patches.isdisjoint(request.outputs) for request in requests)
    encoded = {name: finite(bundle, name, values) for name, values in bundle.encode(images, explain, patches).items()}
    ends = accumulate(map(len, requests))
    spans = [slice(end - len(request), end) for request, end in zip(requests, ends, strict=True)]
    answers: list[Outputs] = [
        {name: values[span] for name, values in encoded.items() if name == EMBEDDING or name in request.outputs}
        for request, span in zip(requests, spans, strict=True)
    ]
    reconstructs = {RECONSTRUCTION, ERRORS} | ({DISTANCES} if scorer is not None and scorer.reconstructs else set())
    graphs: tuple[tuple[set[str], Callable[[Outputs], Outputs]], ...] = (
        ({LOGITS}, lambda rows: {LOGITS: bundle.logits(rows)}),
        ({EXPLANATION}, lambda rows: {EXPLANATION: bundle.explain(rows)}),
        (reconstructs, lambda rows: {RECONSTRUCTION: bundle.reconstruct(rows)}),
        (by_patches, bundle.measure_patches),
    )
    for needed_by, run in graphs:
        chosen = [index for index, request in enumerate(requests) if not needed_by.isdisjoint(request.outputs)]
        if chosen:
            rows = encoded if len(chosen) == len(requests) else _rows(encoded, [spans[index] for index in chosen])
            results = {name: finite(bundle, name, values) for name, values in run(rows).items()}
            if LOGITS in results:
                results |= _ranked(bundle, results[LOGITS])
            start = 0
            for index in chosen:
                span = slice(start, start := start + len(requests[index]))
                answers[index].update({output: array[span] for output, array in results.items()})
    for request, span, outputs in zip(requests, spans, answers, strict=True):
        if RECONSTRUCTION in outputs:
            outputs[ERRORS] = reconstruction_errors(request.images, outputs[RECONSTRUCTION])
        if DISTANCES in request.outputs and scorer is not None:
            taken = bundle.taken(request.images, _rows(encoded, [span]) | outputs, scorer.tensors)
            outputs[DISTANCES] = finite(bundle, DISTANCES, scorer.distances(taken, outputs.get(ERRORS)))
        if NEAREST in request.outputs:
            outputs |= nearest(bundle, outputs[EMBEDDING])
    return answers


def of_tiles(outputs: frozenset[str]) -> frozenset[str]:
    """What is asked of the tiles of a picture, for these outputs of it."""
    return frozenset({EMBEDDING} if outputs.isdisjoint({ANOMALY_MAP, DISTANCES}) else {EMBEDDING, ANOMALY_MAP})


def of_picture(bundle: Bundle, parts: Sequence[Outputs], grid: tiles.Grid, outputs: frozenset[str]) -> Outputs:
    """The outputs of a picture, (1, …) each, from those of all its tiles."""
    joined = bundle.join(parts, grid)
    if DISTANCES in outputs and bundle.scorer is not None:
        taken = bundle.taken(np.empty(0), joined, bundle.scorer.tensors)
        joined[DISTANCES] = finite(bundle, DISTANCES, bundle.scorer.distances(taken, None))
    if NEAREST in outputs:
        joined |= nearest(bundle, joined[EMBEDDING])
    return joined


def nearest(bundle: Bundle, embeddings: np.ndarray) -> Outputs:
    """Of the bundle's index."""
    assert bundle.index is not None  # the caller has required "similar"
    rows, distances = bundle.index.nearest(embeddings)
    return {NEAREST: rows, NEAREST_DISTANCES: distances}


def answer_pictures(bundle: Bundle, pictures: Sequence[np.ndarray] | np.ndarray, outputs: frozenset[str]) -> Outputs:
    """As `answer` for one request, of a bundle that cuts tiles: pictures (h, w, C) of any size."""
    found = []
    for picture in pictures:
        grid = bundle.grid(picture)
        parts = [
            answer(bundle, [OutputRequest(some, of_tiles(outputs))])[0]
            for some in tiles.cut(picture, grid, bundle.tiles_at_once)
        ]
        found.append(of_picture(bundle, parts, grid, outputs))
    return joined_rows(found)


def joined_rows(parts: Sequence[Outputs]) -> Outputs:
    """Outputs of several parts of a request → those of all its images."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]


def finite(bundle: Bundle, name: str, values: np.ndarray) -> np.ndarray:
    """Returns the values. Raises NotFinite if they contain NaN or infinity: all results would be meaningless."""
    total = float(np.add.reduce(values, axis=None))  # a finite sum proves that all are finite, faster than isfinite
    if not isfinite(total) and not np.isfinite(values).all():
        raise NotFinite(f"model {bundle.name}@{bundle.version} returned {name} that is not finite")
    return values


def _ranked(bundle: Bundle, logits: np.ndarray) -> Outputs:
    """Probabilities and label order, for all rows at once: numpy takes as long for one row."""
    assert bundle.manifest.classifier is not None  # the manifest has one exactly when there is a head
    rows = label_probabilities(logits, bundle.manifest.classifier)
    return {PROBABILITIES: rows, ORDER: likeliest_first(rows)}


def _rows(encoded: Outputs, spans: Sequence[slice]) -> Outputs:
    if len(spans) == 1:
        return {name: values[spans[0]] for name, values in encoded.items()}
    return {name: np.concatenate([values[span] for span in spans]) for name, values in encoded.items()}
