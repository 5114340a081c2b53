"""A bundle whose anomaly score is fitted anew on normal images of your own, published as the next version. No torch."""

from pathlib import Path

from app.bundle import Bundle, with_patches
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from training.data.imageset import ImageSet
from training.data.splits import split
from training.measure import defects
from training.measure.metrics import OF_SETS
from training.publish.card import card_of_recalibrated
from training.publish.revise import revised
from training.score import anomaly, distances, drift, marks, patches, reference, sets

# Metrics of the former score, and of the former prediction sets.
_OF_THE_SCORE = frozenset(
    {"false_alarm_rate", "false_region_rate", "out_of_distribution_auroc", *OF_SETS, *defects.TITLES}
)


def recalibrate(
    folder: Path,
    bundle: Bundle,
    normals: ImageSet,
    false_alarm_rate: float,
    seed: int,
    anomalies: ImageSet | None = None,
) -> Path:
    """A new version of the bundle in `folder`: its score fitted on half of the normals, calibrated on the other half.

    The other half is the reference for drift and, if it has the bundle's labels, calibrates prediction sets. Distances,
    graphs, labels and temperature stay as they are. With `anomalies` the threshold is that of the best F1, and the rate
    follows from it. The report is left out, because it describes the former score. A memory of patches is one of the
    normals.
    """
    fitted_on, held_out = split(normals, (len(normals) // 2,), seed)
    bundle, models_of = _remembering(folder, bundle, fitted_on)
    calibration, arrays = anomaly.fit_to_bundle(
        bundle,
        fitted_on,
        held_out,
        distances=distances.usual(bundle),
        false_alarm_rate=false_alarm_rate,
        anomalies=anomalies,
    )
    arrays |= patches.peaks_of(bundle, held_out)
    before = bundle.manifest
    arrays |= drift.reference(bundle, held_out, before.classifier)
    arrays |= sets.reference(bundle, held_out, before.classifier)
    if bundle.map is not None:
        arrays |= bundle.map.arrays()
    data = {**before.provenance.data, "calibration/normals": normals.fingerprint()}
    after = before.model_copy(
        update={
            "anomaly": calibration,
            "reference": reference.FILE,
            "metrics": tuple(metric for metric in before.metrics if metric.name not in _OF_THE_SCORE),
            "provenance": before.provenance.model_copy(update={"data": data}),
        }
    )
    card = card_of_recalibrated(
        after, version=bundle.version, normals=len(normals), anomalies=len(anomalies) if anomalies else 0
    )
    files = {**models_of, reference.FILE: reference.to_bytes(arrays), CARD_FILE: card.encode()}
    return revised(folder, before, after, files, left_out=(REPORT_FILE,))


def _remembering(folder: Path, bundle: Bundle, normals: ImageSet) -> tuple[Bundle, dict[str, bytes]]:
    """(the bundle with a memory of patches of these images, if it has any; the files that differ)."""
    graph = bundle.manifest.graphs.patches
    if graph is None:
        return bundle, {}
    fitted_on, _ = distances.fitted_and_scaled(len(normals))
    before = (folder / graph.file).read_bytes()
    if marks.are_in(before):
        return bundle, {}
    model = patches.refitted(bundle, normals.take(fitted_on), before, bundle.manifest.provenance.opset)
    return with_patches(bundle, graph, model), {graph.file: model}
