"""A tiny bundle as if trained on a folder of its own, and renewed."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import LABELS, save_tiny, spec, tiny

from app.bundle import load, save
from app.bundle.drift import BASIS, SCORES
from app.bundle.manifest import Metric
from app.bundle.scoring import threshold_at
from training import recipe
from training.__main__ import main
from training.data.material import gather
from training.measure.outputs import outputs_of
from training.score import reference

CARD = """# A card

| measure | value | images | how |
| --- | --- | --- | --- |
| accuracy | 0.5000 | 90 | somehow |

Labels: cat, dog, owl.

Made by `graft-train run`.
"""


@dataclass
class Made:
    models: Path
    photos: Path
    folder: Path  # of the bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("renew")
    photos, rng = root / "photos", np.random.default_rng(0)
    for label in LABELS:
        (photos / label).mkdir(parents=True)
        for number in range(250):
            pixels = rng.integers(0, 200, (6, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / label / f"{number}.png")
    shape = spec()
    chosen = recipe.load(
        "quick",
        [f"source={photos}", f"target={photos}", "input.height=6", "input.width=4", "input.channels=1"],
    )
    material = gather(chosen)
    fields, files = tiny(shape)
    plain = load(save(root / "plain", "tiny", fields, files))
    scores = np.sort(outputs_of(plain, material.calibration, "calibration", ("scores",)).scores)  # type: ignore[call-overload]
    anomaly = fields["anomaly"].model_copy(
        update={"calibrated_on": len(scores), "threshold": threshold_at(scores, 0.05)}
    )
    provenance = fields["provenance"].model_copy(
        update={"recipe": chosen.model_dump_json(), "data": material.fingerprints(), "target": "photos"}
    )
    metric = Metric(name="accuracy", value=0.5, images=90, how="somehow")
    files[reference.FILE] = reference.with_arrays(files[reference.FILE], {"calibration_scores": scores})
    files["card.md"] = CARD.encode()
    fields |= {"anomaly": anomaly, "provenance": provenance, "metrics": (metric,)}
    return Made(root / "models", photos, save(root / "models", "tiny", fields, files))


def renewed(made: Made, *options: str) -> Path:
    assert main(["renew", str(made.folder), *options]) == 0
    return made.models / "tiny" / str(max(int(each.name) for each in (made.models / "tiny").iterdir()))


def test_it_gets_sets_and_scores_for_drift_and_keeps_all_else(made: Made) -> None:
    before, folder = load(made.folder), renewed(made)
    after = load(folder)
    assert before.sets is None
    assert after.sets is not None
    material = gather(recipe.Recipe.stored(before.manifest.provenance.recipe))
    assert len(after.sets) == len(material.calibration)
    assert sorted(after.sets.labels) == sorted(material.calibration.labels)
    assert after.drift is not None
    assert after.drift.stream is not None
    for file in before.manifest.files.keys() - {"card.md", reference.FILE}:
        assert (made.folder / file).read_bytes() == (folder / file).read_bytes(), file
    with (
        np.load(folder / reference.FILE) as now,
        np.load(io.BytesIO((made.folder / reference.FILE).read_bytes())) as old,
    ):
        assert {BASIS, SCORES, "sets.labels"} <= set(now)
        for name in old:
            np.testing.assert_array_equal(now[name], old[name])
    metrics = {metric.name: metric for metric in after.manifest.metrics}
    assert list(metrics) == ["accuracy", "set_coverage", "set_size"]
    assert 0.85 < metrics["set_coverage"].value <= 1
    card = (folder / "card.md").read_text()
    assert f"| set_coverage | {metrics['set_coverage'].value:.4f} | 150 |" in card
    assert "| cat | 50 |" in card
    assert card.index("| owl | 50 |") < card.index("Made by `graft-train run`.")


def test_renewed_again_it_is_the_same(made: Made) -> None:
    first = renewed(made)
    assert main(["renew", str(first)]) == 0
    second = first.parent / str(int(first.name) + 1)
    for file in ("card.md", "manifest.json"):
        assert (first / file).read_text() == (second / file).read_text()


def test_what_cannot_be_renewed_is_a_sentence(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "others"
    for label in LABELS:
        (other / label).mkdir(parents=True)
        for number in range(250):
            pixels = np.full((6, 4), number, np.uint8)
            Image.fromarray(pixels).save(other / label / f"{number}.png")
    grafted = save_tiny(tmp_path / "models", "grafted")
    for message, *arguments in (
        ("these are not the images that it was made of", str(made.folder), "--data", str(other)),
        ("it was not made by graft-train run", str(grafted)),
    ):
        assert main(["renew", *arguments]) == 2
        assert message in capsys.readouterr().err
