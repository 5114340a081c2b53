"""An anomaly score that takes feedback on sound images: its threshold and, of patches, its memory. No torch."""

from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle, with_patches
from app.bundle.manifest import Anomaly
from app.bundle.regions import PEAKS
from app.bundle.scoring import p_values
from app.bundle.spool import DEFECT
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.feedback import gate
from training.feedback.gate import Check
from training.feedback.spooled import Judged, pixels, scored, scores
from training.progress import say
from training.score import marks, patches, thresholds

FEWEST = 30  # sound images: thirds of them are remembered, calibrate and judge
FEWEST_DEFECTS = 10  # without them nobody could see that defects would be missed


@dataclass(frozen=True)
class Normals:
    checks: list[Check]
    anomaly: Anomaly
    arrays: dict[str, np.ndarray]  # of the reference file, in the place of those of the same names
    patches: bytes | None  # the graph, where more is remembered
    images: int


def learn(bundle: Bundle, graph: bytes | None, feedback: Judged, seed: int) -> Normals:
    """`graph` is the file of the memory of patches, if the bundle has one."""
    stated, scorer = bundle.manifest.anomaly, bundle.scorer
    assert stated is not None  # there is feedback on it
    assert scorer is not None
    found = scored(feedback, bundle)
    is_defect = np.array([each.label == DEFECT for each in found.records])
    sound, defects = (found.take(np.flatnonzero(rows)) for rows in (~is_defect, is_defect))
    if len(sound) < FEWEST or len(defects) < FEWEST_DEFECTS:
        raise TrainingError(
            f"{len(sound)} sound images and {len(defects)} defects in the spool: {FEWEST} and {FEWEST_DEFECTS} are "
            "needed, as without defects nobody could see that some would be missed"
        )
    order = np.random.default_rng(seed).permutation(len(sound))
    remembered, calibrating, judging = (sound.take(np.sort(part)) for part in np.array_split(order, 3))
    # Scores of all are of the model as it is, until something more is remembered.
    before = [scores(each, bundle) for each in (calibrating, judging, defects)]
    after, model, peaks = before, None, bundle.peaks
    if graph is not None and not marks.are_in(graph):
        if all(each.picture is not None for each in found.records):
            model = patches.extended(bundle, _images(remembered, bundle), graph, bundle.manifest.provenance.opset)
            assert bundle.manifest.graphs.patches is not None  # it has a graph
            bundle = with_patches(bundle, bundle.manifest.graphs.patches, model)
            after = [scores(each, bundle, again=True) for each in (calibrating, judging, defects)]
            highest = patches.peaks_of(bundle, _images(calibrating, bundle))[PEAKS]
            peaks = highest if peaks is None else np.sort(np.concatenate([peaks, highest]))
        else:
            say("the memory of patches stays: the spool has no pictures (GRAFT_FEEDBACK_PICTURES)")
    calibration = _calibration(scorer.calibration, np.sort(after[0]), stated.false_alarm_rate)
    threshold = thresholds.at_rate(calibration, stated.false_alarm_rate)

    def alarms(values: np.ndarray, own: np.ndarray) -> np.ndarray:
        return np.asarray(p_values(values, own) <= stated.false_alarm_rate)

    old = scorer.calibration
    judged_before = np.concatenate([~alarms(before[1], old), alarms(before[2], old)])
    judged_after = np.concatenate([~alarms(after[1], calibration), alarms(after[2], calibration)])
    checks = [
        gate.ordered("defects score higher than sound images", np.concatenate([before[0], before[1]]), before[2]),
        gate.better("feedback held out, sound and defects", judged_before, judged_after),
        gate.no_worse("defects that are found", alarms(before[2], old), alarms(after[2], calibration)),
        gate.no_worse("the bundle's held-out normals", ~alarms(old, old), ~alarms(old, calibration)),
    ]
    quantiles = {each: float(np.quantile(calibration, float(each))) for each in stated.quantiles}
    anomaly = stated.model_copy(
        update={"threshold": threshold, "calibrated_on": len(calibration), "quantiles": quantiles}
    )
    arrays = {"calibration_scores": calibration, **({} if peaks is None else {PEAKS: peaks})}
    return Normals(checks, anomaly, arrays, model, images=len(found))


def _calibration(known: np.ndarray, new: np.ndarray, rate: float) -> np.ndarray:
    """Ascending scores: of those known and the new ones, the sample with the higher threshold, so that neither kind of
    normal image gives more alarms than stated. Too few new ones for the rate are added to those known."""
    if (len(new) + 1) * rate < 1:
        return np.sort(np.concatenate([known, new]))
    return max(known, new, key=lambda sample: thresholds.at_rate(sample, rate))


def _images(judged: Judged, bundle: Bundle) -> ImageSet:
    return ImageSet(np.stack([pixels(each, bundle) for each in judged.records]), np.array([], np.int64), ())
