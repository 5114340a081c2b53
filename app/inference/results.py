"""What a model's outputs say of each image, as plain fields: those of the API's answers, and of a file's rows."""

from collections.abc import Sequence
from typing import Any

from app.bundle import scoring
from app.bundle.bundle import Bundle
from app.errors import MalformedRequest
from app.inference.answer import DISTANCES, ORDER, PROBABILITIES, Outputs

Fields = dict[str, Any]


def classified(bundle: Bundle, outputs: Outputs, top_k: int | None) -> list[Fields]:
    classifier = bundle.manifest.classifier
    assert classifier is not None  # the caller has asked the bundle for it
    labels = classifier.labels
    return [
        {
            "label": labels[order[0]],
            "index": order[0],
            "confidence": row[order[0]],
            "probabilities": {labels[index]: row[index] for index in order[:top_k]},
        }
        for row, order in zip(outputs[PROBABILITIES].tolist(), outputs[ORDER].tolist(), strict=True)
    ]


def judged(bundle: Bundle, outputs: Outputs, false_alarm_rate: float | None) -> list[scoring.AnomalyScore]:
    assert bundle.scorer is not None
    try:
        return bundle.scorer.judge(outputs[DISTANCES], false_alarm_rate)
    except ValueError as error:
        raise MalformedRequest(f"false_alarm_rate: {error}") from None


def told(found: scoring.AnomalyScore) -> Fields:
    return {
        "score": found.score,
        "threshold": found.threshold,
        "anomalous": found.anomalous,
        "p_value": found.p_value,
        "reconstruction_error": found.reconstruction_error,
        "latent_distance": found.latent_distance,
        "distances": found.distances,
    }


def told_in_full(found: scoring.AnomalyScore) -> Fields:
    """As `predict` has it: what is anomalous is none of the model's business."""
    return told(found) | {"in_domain": not found.anomalous}


def join(fields: Sequence[Fields], more: Sequence[Fields]) -> None:
    for each, other in zip(fields, more, strict=True):
        each.update(other)
