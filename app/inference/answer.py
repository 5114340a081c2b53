"""What a batch of images gives, of mixed wishes: the encoder runs once over all, the rest on the rows that need it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.scoring import likeliest_first, probabilities, reconstruction_errors
from app.errors import NotFinite

Outputs = dict[str, np.ndarray]
EMBEDDING, LOGITS, EXPLANATION = "embedding", "logits", "explanation"
PROBABILITIES, ORDER = "probabilities", "order"  # come with logits
RECONSTRUCTION, ERRORS, DISTANCES = "reconstruction", "errors", "distances"


@dataclass(slots=True)
class Wish:
    """One request's images, and the outputs that it asks for."""

    images: np.ndarray  # (n, H, W, C) uint8
    outputs: frozenset[str]

    def __len__(self) -> int:
        return len(self.images)


def answer(bundle: Bundle, wishes: Sequence[Wish]) -> list[Outputs]:
    """For each wish at least its outputs, each (n, …)."""
    images = wishes[0].images if len(wishes) == 1 else np.concatenate([wish.images for wish in wishes])
    encoded = {name: finite(bundle, name, values) for name, values in bundle.encode(images).items()}
    ends = accumulate(map(len, wishes))
    spans = [slice(end - len(wish), end) for wish, end in zip(wishes, ends, strict=True)]
    found: list[Outputs] = [
        {name: values[span] for name, values in encoded.items() if name == EMBEDDING or name in wish.outputs}
        for wish, span in zip(wishes, spans, strict=True)
    ]
    scorer = bundle.scorer
    reconstructs = {RECONSTRUCTION, ERRORS} | ({DISTANCES} if scorer is not None and scorer.reconstructs else set())
    graphs: tuple[tuple[str, set[str], Callable[[Outputs], np.ndarray]], ...] = (
        (LOGITS, {LOGITS}, bundle.logits),
        (EXPLANATION, {EXPLANATION}, bundle.explain),
        (RECONSTRUCTION, reconstructs, bundle.reconstruct),
    )
    for name, by, run in graphs:
        chosen = [index for index, wish in enumerate(wishes) if not by.isdisjoint(wish.outputs)]
        if chosen:
            rows = encoded if len(chosen) == len(wishes) else _rows(encoded, [spans[index] for index in chosen])
            values = finite(bundle, name, run(rows))
            ran = {name: values} | (_ranked(bundle, values) if name == LOGITS else {})
            start = 0
            for index in chosen:
                span = slice(start, start := start + len(wishes[index]))
                found[index].update({each: array[span] for each, array in ran.items()})
    for wish, span, outputs in zip(wishes, spans, found, strict=True):
        if RECONSTRUCTION in outputs:
            outputs[ERRORS] = reconstruction_errors(wish.images, outputs[RECONSTRUCTION])
        if DISTANCES in wish.outputs and scorer is not None:
            taken = bundle.taken(wish.images, _rows(encoded, [span]), scorer.tensors)
            outputs[DISTANCES] = finite(bundle, DISTANCES, scorer.distances(taken, outputs.get(ERRORS)))
    return found


def finite(bundle: Bundle, name: str, values: np.ndarray) -> np.ndarray:
    """The values; a NotFinite where not all are numbers, of which everything that follows would be made up."""
    total = float(np.add.reduce(values, axis=None))  # not finite if one of them is not; to look at each takes longer
    if not isfinite(total) and not np.isfinite(values).all():
        raise NotFinite(f"model {bundle.name}@{bundle.version} gives {name} that is not finite")
    return values


def _ranked(bundle: Bundle, logits: np.ndarray) -> Outputs:
    """Of all rows at once: numpy takes as long for one."""
    assert bundle.manifest.classifier is not None  # there is one exactly when there is a head
    rows = probabilities(logits, bundle.manifest.classifier.temperature)
    return {PROBABILITIES: rows, ORDER: likeliest_first(rows)}


def _rows(encoded: Outputs, spans: Sequence[slice]) -> Outputs:
    if len(spans) == 1:
        return {name: values[spans[0]] for name, values in encoded.items()}
    return {name: np.concatenate([values[span] for span in spans]) for name, values in encoded.items()}
