"""A measured draft → models/<name>/<version>/, with card and report."""

from pathlib import Path

from app.bundle import save
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from training.data.material import Material
from training.measure.sets import by_class
from training.publish.card import card
from training.publish.draft import Measured, label_source
from training.publish.provenance import machine
from training.score import reference


def deliver(models: Path, material: Material, measured: Measured, report: str, minutes: float) -> Path:
    """Save the next version. `report` is HTML without images of the data, `minutes` the time that the run took."""
    draft = measured.draft
    rows = list(by_class(draft.bundle, material.test, measured.outputs)) if material.tested else []
    text = card(draft.bundle.manifest, label_source(material), minutes, machine(), tested=material.tested, sets=rows)
    files = {
        **draft.exported.files,
        reference.FILE: reference.to_bytes(draft.arrays),
        CARD_FILE: text.encode(),
        REPORT_FILE: report.encode(),
    }
    return save(models, draft.bundle.name, draft.fields, files, tolerances=draft.exported.tolerances)
