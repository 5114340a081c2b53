"""An older bundle with what newer exports hold beside it, published as the next version. No torch.

The graphs, the score and the golden pairs stay as they are, byte for byte. Prediction sets and the scores for drift are
made of the same held-out images as when the bundle was exported: that these are the same is proved, not assumed.
"""

import re
from pathlib import Path

import numpy as np

from app.bundle import Bundle, with_references
from app.bundle.bundle import CARD_FILE
from training.data.material import Material, gather
from training.errors import TrainingError
from training.measure.metrics import OF_SETS, of_sets, test_part
from training.measure.outputs import outputs_of
from training.measure.sets import by_class
from training.progress import say
from training.publish.card import metrics_table, sets_table
from training.publish.revise import revised
from training.recipe import Recipe
from training.score import drift, reference, sets

_TABLE = re.compile(r"^\| measure \|.*?\n\n", re.MULTILINE | re.DOTALL)
_MADE_BY = re.compile(r"^Made by `", re.MULTILINE)
_SAME = 1e-3  # by which scores that were computed on another machine may differ, as a share of their spread


def renew(folder: Path, bundle: Bundle, models: Path, data: str | None = None) -> Path:
    """The next version in models/NAME/ of the bundle in `folder`. `data` is where its images lie now."""
    material = _material(bundle, data)
    manifest = bundle.manifest
    with np.load(folder / reference.FILE, allow_pickle=False) as stored:
        arrays = dict(stored)
    new = drift.reference(bundle, material.calibration, manifest.classifier)
    new |= sets.reference(bundle, material.calibration, manifest.classifier)
    say(f"{len(material.calibration):,} images were held out: {', '.join(sorted(new)) or 'too few for anything'}")
    renewed = with_references(bundle, {}, {**arrays, **new})
    card = (folder / CARD_FILE).read_text() if CARD_FILE in manifest.files else None
    metrics = manifest.metrics
    if renewed.sets is not None and material.tested and material.test.labelled:
        how = f"exported bundle through app.bundle, {test_part(material.test, manifest)}"
        outputs = outputs_of(renewed, material.test, f"evaluate {bundle.name}", ("logits",))
        metrics = tuple(each for each in metrics if each.name not in OF_SETS)
        metrics += tuple(of_sets(renewed, material.test, outputs, how))
        rows = sets_table(list(by_class(renewed, material.test, outputs)))
        card = None if card is None else _card(card, metrics_table(metrics), rows)
    files = {reference.FILE: reference.to_bytes({**arrays, **new})}
    if card is not None:
        files[CARD_FILE] = card.encode()
    after = manifest.model_copy(update={"metrics": metrics, "reference": reference.FILE})
    return revised(folder, manifest, after, files, models=models)


def _material(bundle: Bundle, data: str | None) -> Material:
    """The images of the bundle's recipe, split as they were. Raises TrainingError if they are others."""
    full, provenance = f"{bundle.name}@{bundle.version}", bundle.manifest.provenance
    try:
        recipe = Recipe.stored(provenance.recipe)
    except ValueError:
        raise TrainingError(
            f"{full}: it was not made by graft-train run: use graft-train calibrate, with images of your own"
        ) from None
    if data is not None:
        same = recipe.source == recipe.target
        recipe = recipe.model_copy(update={"target": data, **({"source": data} if same else {})})
    material = gather(recipe)
    if material.calibration is material.target:
        raise TrainingError(
            f"{full}: it has learnt from all its images, so none is left to calibrate by: use graft-train calibrate, "
            "with images of your own"
        )
    found = material.fingerprints()
    changed = [name for name, digest in provenance.data.items() if found.get(name) != digest]
    if changed:
        raise TrainingError(
            f"{full}: these are not the images that it was made of ({', '.join(changed)}): name their folder with "
            "--data"
        )
    _require_same_calibration(bundle, material, full)
    return material


def _require_same_calibration(bundle: Bundle, material: Material, full: str) -> None:
    """The scores that were stored at export are those of the images that are held out now."""
    scorer = bundle.scorer
    if scorer is None:
        raise TrainingError(
            f"{full}: it has no anomaly calibration, by which to know its held-out images: export it again"
        )
    scores = outputs_of(bundle, material.calibration, "held-out images", ("scores",)).scores
    assert scores is not None
    most = _SAME * float(scorer.calibration.std())
    if len(scores) != len(scorer.calibration) or np.abs(np.sort(scores) - scorer.calibration).max() > most:
        raise TrainingError(f"{full}: other images would be held out than when it was exported: export it again")


def _card(text: str, metrics: list[str], rows: list[str]) -> str:
    """The card with this table of metrics, and a section on prediction sets before the line on how it was made."""
    text = _TABLE.sub(lambda _: "\n".join(metrics) + "\n", text, count=1)
    start = text.find(rows[0]) if rows else -1
    if start >= 0:  # renewed before
        text = text[:start] + text[_MADE_BY.search(text, start).start() :]  # type: ignore[union-attr]
    made = _MADE_BY.search(text)
    at = len(text) if made is None else made.start()
    return text[:at] + "".join(f"{line}\n" for line in rows) + text[at:]
