"""Outputs of a batch → results of an operation: fields for the API and the offline scorer, tensors for /v2."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.bundle import scoring
from app.bundle.bundle import PICTURE_SIZE, Bundle
from app.bundle.heatmaps import grey_of_distances, grey_of_errors, grey_of_placed
from app.bundle.manifest import ANOMALY_MAP, Classifier
from app.bundle.regions import Region, Size
from app.bundle.sets import SetOptions, shares_of
from app.errors import MalformedRequest
from app.inference.answer import (
    DISTANCES,
    EMBEDDING,
    LOGITS,
    NEAREST,
    NEAREST_DISTANCES,
    ORDER,
    PROBABILITIES,
    RECONSTRUCTION,
    Outputs,
)

Fields = dict[str, Any]

# Operation → the output that it needs.
OUTPUT_OF = {"encode": EMBEDDING, "classify": LOGITS, "reconstruct": RECONSTRUCTION, "anomaly": DISTANCES}


def classify_fields(bundle: Bundle, outputs: Outputs, top_k: int | None) -> list[Fields]:
    classifier = bundle.manifest.classifier
    assert classifier is not None  # the caller has required "classify"
    if classifier.thresholds is not None:
        return _independent(classifier, outputs, top_k)
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


def _independent(classifier: Classifier, outputs: Outputs, top_k: int | None) -> list[Fields]:
    """Of labels of which an image may have several, those that it has; the likeliest first."""
    labels, rows = classifier.labels, outputs[PROBABILITIES]
    assert classifier.thresholds is not None
    present = scoring.are_present(rows, classifier.thresholds).tolist()
    sure = scoring.confidences(rows, classifier).tolist()
    return [
        {
            "labels": [
                {"label": labels[index], "index": index, "probability": row[index]} for index in order if has[index]
            ],
            "confidence": confidence,
            "probabilities": {labels[index]: row[index] for index in order[:top_k]},
        }
        for row, order, has, confidence in zip(rows.tolist(), outputs[ORDER].tolist(), present, sure, strict=True)
    ]


def set_fields(
    bundle: Bundle, images: Sequence[np.ndarray] | np.ndarray, outputs: Outputs, options: SetOptions
) -> list[Fields]:
    """`images` (N, H, W, C) uint8 gave these outputs."""
    classifier, sets = bundle.manifest.classifier, bundle.sets
    assert classifier is not None  # the caller has required "sets"
    assert sets is not None
    shares = shares_of(images) if options.by == "raps" else None
    members = sets.members(outputs[PROBABILITIES], options, shares)
    return [
        {"set": [classifier.labels[index] for index in order if within[index]]}
        for order, within in zip(outputs[ORDER].tolist(), members.tolist(), strict=True)
    ]


def encode_fields(outputs: Outputs) -> list[Fields]:
    return [{"embedding": row} for row in outputs[EMBEDDING].tolist()]


def anomaly_scores(bundle: Bundle, outputs: Outputs, false_alarm_rate: float | None) -> list[scoring.AnomalyScore]:
    assert bundle.scorer is not None
    try:
        return bundle.scorer.score_distances(outputs[DISTANCES], false_alarm_rate)
    except ValueError as error:
        raise MalformedRequest(f"false_alarm_rate: {error}") from None


def anomaly_fields(score: scoring.AnomalyScore) -> Fields:
    return {
        "score": score.score,
        "threshold": score.threshold,
        "anomalous": score.anomalous,
        "p_value": score.p_value,
        "reconstruction_error": score.reconstruction_error,
        "latent_distance": score.latent_distance,
        "distances": score.distances,
    }


def region_fields(
    bundle: Bundle, outputs: Outputs, sizes: Sequence[Size], false_alarm_rate: float | None
) -> list[Fields]:
    """`sizes` are those of the upright pictures, in whose pixels the boxes are."""
    try:
        found = bundle.regions(outputs[ANOMALY_MAP], sizes, false_alarm_rate)
    except ValueError as error:
        raise MalformedRequest(f"false_alarm_rate: {error}") from None
    return [{"regions": [_region(each) for each in regions]} for regions in found]


def map_output(bundle: Bundle) -> str:
    """The output that heatmaps show: the map that the score reads, if it reads one."""
    return ANOMALY_MAP if bundle.scorer is not None and bundle.scorer.reads_patches else RECONSTRUCTION


def maps(bundle: Bundle, images: np.ndarray, outputs: Outputs) -> np.ndarray:
    """(N, rows, columns) float32: what heatmaps are drawn from. `images` (N, H, W, C) uint8 gave these outputs.

    Of pictures in tiles (N,) objects, each (rows, columns).
    """
    if map_output(bundle) == ANOMALY_MAP:
        return outputs[ANOMALY_MAP]
    return scoring.error_maps(images, outputs[RECONSTRUCTION])


def heatmaps(bundle: Bundle, images: np.ndarray, outputs: Outputs) -> list[np.ndarray]:
    """(H, W) uint8 for each image, white where it is least like normal ones."""
    each = maps(bundle, images, outputs)
    if bundle.tiled:
        sizes = outputs[PICTURE_SIZE].tolist()
        placed = (bundle.place_stitched(map_, *size) for map_, size in zip(each, sizes, strict=True))
        return [grey_of_placed(map_, own, bundle.white) for map_, own in zip(each, placed, strict=True)]
    if map_output(bundle) == ANOMALY_MAP:
        height, width, _ = bundle.manifest.input.shape
        return [grey_of_distances(map_, height, width, bundle.white) for map_ in each]
    return [grey_of_errors(map_) for map_ in each]


def _region(region: Region) -> Fields:
    return {
        "box": [round(side, 1) for side in region.box],
        "area": round(region.area, 1),
        "score": region.score,
        "p_value": region.p_value,
    }


def in_domain_fields(score: scoring.AnomalyScore) -> Fields:
    """An anomalous image is outside the model's domain."""
    return {"in_domain": not score.anomalous}


def similar_fields(bundle: Bundle, outputs: Outputs, count: int, thumbnails: bool = False) -> list[list[Fields]]:
    """Of each image the nearest examples of the bundle's index, the nearest first."""
    pairs = zip(outputs[NEAREST][:, :count].tolist(), outputs[NEAREST_DISTANCES][:, :count].tolist(), strict=True)
    return [
        [_similar(bundle, row, distance, thumbnails) for row, distance in zip(rows, distances, strict=True)]
        for rows, distances in pairs
    ]


def _similar(bundle: Bundle, row: int, distance: float, thumbnails: bool) -> Fields:
    assert bundle.index is not None
    example = bundle.index.example(row)
    named = {"label": example.label, "file": example.file}
    fields = {name: value for name, value in named.items() if value is not None} | {"distance": distance}
    if thumbnails and example.thumbnail is not None:
        fields["thumbnail"] = base64.b64encode(example.thumbnail).decode()
    return fields


def evidence_fields(bundle: Bundle, outputs: Outputs) -> list[Fields]:
    return [{"evidence": nearest} for [nearest] in similar_fields(bundle, outputs, 1)]


def merge(fields: Sequence[Fields], more: Sequence[Fields]) -> None:
    """Adds `more` to the fields of each image, in place."""
    for row, addition in zip(fields, more, strict=True):
        row.update(addition)


def probabilities(bundle: Bundle, outputs: Outputs) -> np.ndarray:
    """(N, labels). A batch of images has them already; for embeddings they are computed from the logits."""
    if PROBABILITIES in outputs:
        return outputs[PROBABILITIES]
    assert bundle.manifest.classifier is not None
    return scoring.label_probabilities(outputs[LOGITS], bundle.manifest.classifier)


def combined_scores(bundle: Bundle, outputs: Outputs) -> np.ndarray:
    """(N,) anomaly scores."""
    assert bundle.scorer is not None
    return bundle.scorer.combine(outputs[DISTANCES])


def p_values(bundle: Bundle, outputs: Outputs) -> np.ndarray:
    """(N,)"""
    return np.array([score.p_value for score in anomaly_scores(bundle, outputs, None)])
