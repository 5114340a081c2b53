"""What a spool says of one bundle's images. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle import Bundle, ImageError
from app.bundle.spool import Record, encoder_of, read, scorer_of
from training.errors import TrainingError, listed
from training.progress import say, track


@dataclass(frozen=True)
class Judged:
    """Images with the last word on each, in the order in which they were judged."""

    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def take(self, rows: np.ndarray) -> "Judged":
        return Judged(tuple(self.records[row] for row in rows))


def judged(spool: Path, bundle: Bundle) -> tuple[Judged, Judged]:
    """(those of labels, those of sound and defect) that are of this model."""
    if not spool.is_dir():
        raise TrainingError(f"{spool}: no such folder; give the one that GRAFT_FEEDBACK names")
    last: dict[tuple[str, bool], Record] = {}
    broken: list[str] = []
    others = 0
    for each in read(spool):
        if isinstance(each, ValueError):
            broken.append(str(each))
        elif each.model != bundle.name:
            others += 1
        else:
            last.pop((each.image, each.of_anomaly), None)
            last[each.image, each.of_anomaly] = each
    if broken:
        say(f"{spool}: left out lines that cannot be read ({len(broken):,}): {listed(broken)}")
    if others:
        say(f"{spool}: {others:,} lines are of other models")
    if not last:
        raise TrainingError(f"{spool}: no feedback on {bundle.name} in it")
    of_labels, of_anomaly = (
        Judged(tuple(each for each in last.values() if each.of_anomaly == wanted)) for wanted in (False, True)
    )
    return of_labels, of_anomaly


def known_labels(judged: Judged, labels: Sequence[str]) -> Judged:
    """Those whose label the bundle has."""
    others = sorted({each.label for each in judged.records} - set(labels))
    if others:
        say(f"left out feedback with labels that the model does not have: {listed(others)}")
    return Judged(tuple(each for each in judged.records if each.label in labels))


def usable(judged: Judged, bundle: Bundle) -> Judged:
    """Those of which the spool holds what is needed: tensors of this encoder, or the picture."""
    found = tuple(
        each for each in judged.records if each.encoder == encoder_of(bundle.manifest) or each.picture is not None
    )
    _say_left_out(judged, found)
    return Judged(found)


def scored(judged: Judged, bundle: Bundle) -> Judged:
    """Likewise of the anomaly score."""
    own = scorer_of(bundle.manifest)
    found = tuple(
        each
        for each in judged.records
        if each.picture is not None or (each.scorer == own and each.distances is not None)
    )
    _say_left_out(judged, found)
    return Judged(found)


def _say_left_out(judged: Judged, found: Sequence[Record]) -> None:
    if len(found) < len(judged):
        say(f"left out feedback on another version's codes, without a picture: {len(judged) - len(found):,} images")


def points(judged: Judged, bundle: Bundle, tensor: str) -> np.ndarray:
    """(N, D) of the encoder's output."""
    own, rows = encoder_of(bundle.manifest), []
    for each in judged.records:
        if each.encoder == own and tensor in each.tensors:
            rows.append(each.tensors[tensor])
        else:
            rows.append(bundle.encode(pixels(each, bundle)[None])[tensor][0])
    return np.stack(rows).astype(np.float32)


def scores(judged: Judged, bundle: Bundle, again: bool = False) -> np.ndarray:
    """(N,) anomaly scores; `again` from the pictures, where the score has changed."""
    assert bundle.scorer is not None
    own, found = scorer_of(bundle.manifest), []
    for each in track(judged.records, "scores", len(judged)):
        if not again and each.scorer == own and each.distances is not None:
            found.append(float(bundle.scorer.combine(each.distances[None])[0]))
        else:
            found.append(bundle.anomaly(pixels(each, bundle)[None])[0].score)
    return np.array(found)


def pixels(record: Record, bundle: Bundle) -> np.ndarray:
    if record.picture is None:
        raise TrainingError(f"feedback on request {record.request_id}: the spool has no picture of it")
    try:
        return bundle.preprocess(record.picture)
    except ImageError as error:
        raise TrainingError(f"feedback on request {record.request_id}: its picture: {error}") from None
