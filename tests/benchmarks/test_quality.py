import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, draw_named

from benchmarks.quality import NEU_SPLIT, ood
from training import recipe


def test_the_page_of_the_factory_names_the_settings_that_its_numbers_come_from() -> None:
    page = (ROOT / "docs/defects.md").read_text()
    assert all(f"--set {setting}" in page for setting in NEU_SPLIT)
    pictures, classes = 1800, 6
    for settings, text in ((NEU_SPLIT, "all 141 to 142"), ((), "105 a class")):
        chosen = recipe.load("defects", list(settings))
        train = pictures - round(chosen.split.test * pictures)
        held_out = min(chosen.split.validation, train // 10) + min(chosen.split.calibration, train // 5)
        assert text in page
        assert str((train - held_out) // classes) in text


def test_the_score_is_measured_on_each_domain_and_the_worst_that_no_choice_has_seen_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rng = draw_named(tmp_path / "data", per_class=5), np.random.default_rng(0)
    (data / "digits").mkdir()
    with gzip.open(data / "digits/digits.csv.gz", "wt") as file:
        for pixels in rng.integers(0, 17, (20, 64)):
            file.write(",".join(map(str, [*pixels, 3])) + "\n")
    (data / "neu-surface/crazing").mkdir(parents=True)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(data / f"neu-surface/crazing/{number}.jpg")
    monkeypatch.setenv("GRAFT_DATA", str(data))
    monkeypatch.chdir(ROOT)
    known, worst = ood(drawn=30)
    printed = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, measured = line.strip().partition(" images: AUROC ")
        printed[name.rpartition(",")[0]] = float(measured.split(",")[0])
    assert set(printed) == {"fashion-mnist", "mnist", "digits", "NEU surfaces", "noise", "drawn textures"}
    assert printed["fashion-mnist"] == 0.5
    assert known.value == pytest.approx(printed["mnist"], abs=1e-4)
    unseen = {name: area for name, area in printed.items() if name not in ("fashion-mnist", "mnist")}
    assert worst.value == pytest.approx(min(unseen.values()), abs=1e-4)
    assert (
        f"the worst of 4 domains that no choice has seen ({min(unseen, key=lambda name: unseen[name])})" in worst.what
    )
