"""A head that is corrected by feedback on labels, and whether it is better. No torch."""

from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Classifier
from training.errors import TrainingError
from training.feedback import gate
from training.feedback.gate import Check
from training.feedback.spooled import Judged, known_labels, points, usable
from training.score import correction, temperature
from training.score.codes import Codes, Part

FEWEST = 30  # images with feedback: a third of them judges
FEWEST_CORRECTIONS = 10  # of them where the model said otherwise
_JUDGES = 3  # of so many images one


@dataclass(frozen=True)
class Head:
    checks: list[Check]
    file: bytes  # of the graph
    classifier: Classifier  # with its new temperature
    images: int


def learn(bundle: Bundle, head: bytes, codes: Codes, feedback: Judged, seed: int) -> Head:
    """Fitted on two thirds of the feedback and judged by the last third and by the bundle's held-out images.

    What is published is fitted on all of it, with the same penalty, and judged by the held-out images again.
    """
    classifier, graph = bundle.manifest.classifier, bundle.manifest.graphs.head
    assert classifier is not None  # there are codes
    assert graph is not None
    codes = correction.corrected(head, codes)
    found = usable(known_labels(feedback, classifier.labels), bundle)
    if len(found) < FEWEST:
        raise TrainingError(f"{len(found)} images with labels in the spool: {FEWEST} are needed, to learn and to judge")
    x = points(found, bundle, graph.input.name)
    labels = np.array([classifier.labels.index(each.label) for each in found.records])
    whole = Part(codes.of(x), bundle.logits({graph.input.name: x}), labels)
    corrections = int((whole.logits.argmax(axis=1) != labels).sum())
    if corrections < FEWEST_CORRECTIONS:
        raise TrainingError(
            f"the model is wrong of {corrections} of the {len(found)} images in the spool: {FEWEST_CORRECTIONS} "
            "corrections are needed"
        )
    order = np.random.default_rng(seed).permutation(len(whole))
    judging, learning = (whole.take(np.sort(part)) for part in np.split(order, [len(order) // _JUDGES]))
    penalty = correction.best_penalty(learning, codes.train, seed)
    tried = correction.fit(learning, codes.train, penalty)
    last = correction.fit(whole, codes.train, penalty)
    before, after = _right(judging.logits, judging), _right(tried.logits(judging), judging)
    held_out = codes.held_out
    kept, now = _right(held_out.logits, held_out), _right(last.logits(held_out), held_out)
    checks = [
        gate.plausible(whole.logits, whole.labels),
        gate.better("feedback held out", before, after),
        gate.more_than_a_constant("the same beside the commonest label", after, judging.labels),
        gate.no_worse("the bundle's held-out images", kept, now),
    ]
    logits = np.concatenate([last.logits(held_out), tried.logits(judging)])
    fitted = temperature.fit(logits, np.concatenate([held_out.labels, judging.labels]))
    file = correction.with_correction(head, graph, codes, last)
    return Head(checks, file, classifier.model_copy(update={"temperature": fitted}), len(found))


def _right(logits: np.ndarray, part: Part) -> np.ndarray:
    return np.asarray(logits.argmax(axis=1) == part.labels)
