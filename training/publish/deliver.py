"""A measured draft → models/<name>/<version>/, with card and report."""

from collections.abc import Sequence
from pathlib import Path

from app.bundle import save
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from training.data.material import Material
from training.publish.card import card
from training.publish.draft import Draft, label_source
from training.publish.provenance import machine
from training.score import reference


def deliver(
    models: Path,
    material: Material,
    draft: Draft,
    report: str,
    minutes: float,
    sets: Sequence[Sequence[str]] = (),
) -> Path:
    """Save the next version. `report` is HTML without images of the data, `minutes` the time that the run took, `sets`
    what is measured of prediction sets, by class."""
    text = card(draft.bundle.manifest, label_source(material), minutes, machine(), tested=material.tested, sets=sets)
    files = {
        **draft.exported.files,
        reference.FILE: reference.to_bytes(draft.arrays),
        CARD_FILE: text.encode(),
        REPORT_FILE: report.encode(),
    }
    return save(models, draft.bundle.name, draft.fields, files, tolerances=draft.exported.tolerances)
