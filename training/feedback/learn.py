"""From a spool of feedback to a bundle's next version, if it passes the gate. No torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from app.bundle import Bundle, Manifest
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from app.bundle.drift import CONFIDENCES
from app.bundle.sets import ARRAYS
from training.errors import TrainingError
from training.feedback import heads, normals
from training.feedback.gate import Check, table
from training.feedback.spooled import Judged, judged
from training.measure.metrics import OF_SETS
from training.progress import say
from training.publish.card import card_of_learnt
from training.publish.revise import revised
from training.score import codes, reference

_OF_THE_HEAD = (*ARRAYS, CONFIDENCES)
Learnt = TypeVar("Learnt", heads.Head, normals.Normals)


def learn(folder: Path, bundle: Bundle, spool: Path, seed: int) -> Path:
    """The published version. Head and score are judged apart: each is published if it passes, and else stays.

    Raises TrainingError, which says why, if neither passes.
    """
    before = bundle.manifest
    of_labels, of_anomaly = judged(spool, bundle)
    say(f"{spool}: {len(of_labels):,} images with a label, {len(of_anomaly):,} with sound or defect")
    reasons: list[str] = []
    head = _tried(lambda: _head(folder, bundle, of_labels, seed), "head", reasons) if len(of_labels) else None
    score = _tried(lambda: _score(folder, bundle, of_anomaly, seed), "score", reasons) if len(of_anomaly) else None
    if head is None and score is None:
        raise TrainingError(f"not published: {'; '.join(reasons)}")
    for reason in reasons:
        say(f"left as it was: {reason}")
    changes: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    checks: list[Check] = []
    left_out = [REPORT_FILE]
    if head is not None:
        assert before.graphs.head is not None  # it was corrected
        changes["classifier"] = head.classifier
        files[before.graphs.head.file] = head.file
        checks += head.checks
        if before.graphs.explain is not None:  # it explains the head without its correction
            left_out.append(before.graphs.explain.file)
            changes["graphs"] = before.graphs.model_copy(update={"explain": None})
        if before.reference is not None:  # calibration images were scored by the head as it was: a set promises nothing
            files[before.reference] = reference.without((folder / before.reference).read_bytes(), _OF_THE_HEAD)
            changes["metrics"] = tuple(each for each in before.metrics if each.name not in OF_SETS)
    if score is not None:
        assert before.reference is not None  # it has calibration scores
        changes["anomaly"] = score.anomaly
        stored = files.get(before.reference) or (folder / before.reference).read_bytes()
        files[before.reference] = reference.with_arrays(stored, score.arrays)
        checks += score.checks
        if score.patches is not None:
            assert before.graphs.patches is not None  # it was extended
            files[before.graphs.patches.file] = score.patches
    after = before.model_copy(update=changes)
    return _published(folder, bundle, after, files, checks=checks, left_out=left_out)


def _tried(work: Callable[[], Learnt], part: str, reasons: list[str]) -> Learnt | None:
    """What was learnt if it passed; else None, and why is added to the reasons."""
    try:
        found = work()
    except TrainingError as error:
        reasons.append(f"the {part}: {error}")
        return None
    for line in table(found.checks):
        say(line)
    failed = [each for each in found.checks if not each.passed]
    reasons += [f"the {part}: {each.what}: {each.reason}" for each in failed]
    return None if failed else found


def _head(folder: Path, bundle: Bundle, feedback: Judged, seed: int) -> heads.Head:
    manifest = bundle.manifest
    if manifest.graphs.head is None or manifest.codes is None:
        raise TrainingError(
            f"{bundle.name}@{bundle.version} has no codes of held-out images to judge a head by: export it again"
        )
    known = codes.read(bundle, (folder / manifest.codes).read_bytes())
    return heads.learn(bundle, (folder / manifest.graphs.head.file).read_bytes(), known, feedback, seed=seed)


def _score(folder: Path, bundle: Bundle, feedback: Judged, seed: int) -> normals.Normals:
    if bundle.scorer is None:
        raise TrainingError(f"{bundle.name}@{bundle.version} has no anomaly score")
    graph = bundle.manifest.graphs.patches
    file = None if graph is None else (folder / graph.file).read_bytes()
    return normals.learn(bundle, file, feedback, seed)


def _published(
    folder: Path, bundle: Bundle, after: Manifest, files: dict[str, bytes], *, checks: list[Check], left_out: list[str]
) -> Path:
    before = bundle.manifest
    old = (folder / CARD_FILE).read_text() if CARD_FILE in before.files else f"# {before.title}\n"
    card = card_of_learnt(old, bundle.version, table(checks)).encode()
    return revised(folder, before, after, {**files, CARD_FILE: card}, left_out=left_out)
