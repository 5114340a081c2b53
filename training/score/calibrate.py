"""Temperature and anomaly threshold, from held-out images. Works where torch is not installed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle import Bundle, save
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from app.bundle.manifest import Manifest
from app.bundle.scoring import probabilities
from training.data.imageset import ImageSet
from training.data.splits import split
from training.errors import TrainingError
from training.measure import evaluate
from training.recipe import DISTANCES, tensors
from training.score import anomaly, drift

_NOTE = "The anomaly score was fitted"
_NONE = "No anomaly score"  # begins what is said instead where there is none yet
REFERENCE_FILE = "reference.npz"
_ANOMALY_METRICS = frozenset({"false_alarm_rate"})  # which a new calibration makes untrue


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What the logits must be divided by for the least negative log-likelihood; found by golden section on its log."""

    def loss(log_t: float) -> float:
        chances = probabilities(logits, float(np.exp(log_t)))
        return float(-np.log(chances[np.arange(len(labels)), labels] + 1e-300).mean())

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def anomaly_part(
    bundle: Bundle,
    train: ImageSet,
    held_out: ImageSet,
    distances: Sequence[str],
    false_alarm_rate: float,
    anomalies: ImageSet | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(manifest fields, arrays of the reference file) of an anomaly score on what the bundle's own graphs give."""
    if "reconstruction" in distances and bundle.decoder is None:
        raise TrainingError(f"{bundle.name}@{bundle.version} has no decoder: an anomaly score needs one")
    wanted = tensors(distances) | ({"errors"} if "reconstruction" in distances else set())

    def read(data: ImageSet) -> anomaly.Normals:
        outputs = evaluate.run(bundle, data, "anomaly", wanted)
        return anomaly.Normals(outputs.encoded, outputs.errors)

    blocks = [math.prod(each) for each in bundle.manifest.feature_maps]
    strange = None if anomalies is None else read(anomalies)
    calibration, arrays = anomaly.fit(read(train), read(held_out), distances, false_alarm_rate, blocks, strange)
    return {"anomaly": calibration, "reference": REFERENCE_FILE}, arrays


def recalibrate(
    folder: Path,
    bundle: Bundle,
    normals: ImageSet,
    false_alarm_rate: float,
    seed: int,
    anomalies: ImageSet | None = None,
) -> Path:
    """A new version of the bundle in `folder`: the anomaly score fitted on half of the normals, calibrated on the rest,
    by which drift is told too.

    Its distances are those that it had; graphs, labels and temperature stay as they are. With `anomalies` the threshold
    is that of the best F1, and the rate follows from it. The report stays behind: what it says of the score is past.
    """
    fitted_on, held_out = split(normals, (len(normals) // 2,), seed)
    stated = bundle.manifest.anomaly.distances if bundle.manifest.anomaly else ()
    usual = [name for name in DISTANCES if name != "reconstruction" or bundle.decoder is not None]
    distances = [distance.name for distance in stated] or usual
    fields, arrays = anomaly_part(bundle, fitted_on, held_out, distances, false_alarm_rate, anomalies)
    classifier = bundle.manifest.classifier
    arrays |= drift.reference(bundle, held_out, classifier.temperature if classifier else None)
    if bundle.map is not None:
        arrays |= bundle.map.arrays()
    false_alarm_rate = fields["anomaly"].false_alarm_rate
    made_anew = ("golden", "files", "seal")
    before = {field: getattr(bundle.manifest, field) for field in Manifest.model_fields if field not in made_anew}
    left = (bundle.manifest.golden.file, bundle.manifest.reference, REPORT_FILE)
    kept = {name for name in bundle.manifest.files if name not in left}
    metrics = tuple(metric for metric in before["metrics"] if metric.name not in _ANOMALY_METRICS)
    data = {**before["provenance"].data, "calibration/normals": normals.fingerprint()}
    fields |= {"metrics": metrics, "provenance": before["provenance"].model_copy(update={"data": data})}
    files = {name: (folder / name).read_bytes() for name in kept} | {REFERENCE_FILE: anomaly.to_file(arrays)}
    if CARD_FILE in files:
        kept_lines = [
            line
            for line in files[CARD_FILE].decode().splitlines()
            if not line.startswith(
                (*(f"| {name} |" for name in _ANOMALY_METRICS), "An image is called anomalous", _NOTE, _NONE)
            )
        ]
        note = (
            f"{_NOTE} and calibrated anew, from version {bundle.version}, on {len(normals):,} "
            f"normal images from elsewhere; it calls {false_alarm_rate:.2%} of such images anomalous"
            + (f", the rate with the best F1 against {len(anomalies):,} anomalies." if anomalies else ".")
        )
        files[CARD_FILE] = "\n".join([*kept_lines, "", note, ""]).encode()
    tolerances = bundle.manifest.golden.outputs
    return save(folder.parent.parent, bundle.name, before | fields, files, tolerances=tolerances)
