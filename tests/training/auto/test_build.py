"""The one command, on folders drawn here: what it makes is served, and what it says is so."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, draw_folder, draw_inspection

from app.bundle import load
from training import recipe as recipes
from training.__main__ import main
from training.auto.build import VERDICT_FILE
from training.auto.verdict import NO_BETTER
from training.data.material import gather
from training.data.resolution import settled


def auto(folder: Path, out: Path, *more: str) -> int:
    own = ("--models", str(out / "models"), "--run", str(out / "run"), "--minutes", "60")
    return main(["auto", str(folder), *own, *more])


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds, eight images of each."""
    drawn = draw_folder(tmp_path_factory.mktemp("kinds") / "garments", 8, seed=4)
    for kind in sorted(drawn.iterdir())[3:]:
        shutil.rmtree(kind)
    return drawn


@pytest.fixture(scope="module")
def built(garments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    assert auto(garments, out) == 0
    return out


def test_a_folder_of_kinds_becomes_a_bundle_that_has_learnt_from_all_of_it(built: Path, garments: Path) -> None:
    bundle = load(built / "models" / "garments" / "1")
    assert bundle.manifest.classifier is not None
    assert bundle.manifest.classifier.labels == tuple(sorted(each.name for each in garments.iterdir()))
    metrics = {each.name: each for each in bundle.manifest.metrics}
    assert metrics["accuracy_across_folds"].images == 8 * len(bundle.manifest.classifier.labels)
    assert "dealt 3 times" in metrics["accuracy_across_folds"].how
    assert "accuracy" not in metrics
    said = (built / "run" / "frozen" / VERDICT_FILE).read_text()
    assert NO_BETTER not in said
    report = (built / "run" / "frozen" / "report.html").read_text().replace("&#x27;", "'")
    assert said.splitlines()[0] in report
    assert "Accuracy by labels, on images that were not learnt from" in report


def test_its_plan_run_again_gives_the_same_head(built: Path, tmp_path: Path) -> None:
    plan = built / "run" / "frozen" / "plan.toml"
    assert main(["run", str(plan), "--models", str(tmp_path / "models"), "--run", str(tmp_path / "run")]) == 0
    ours, again = load(built / "models" / "garments" / "1"), load(tmp_path / "models" / "garments" / "1")
    assert ours.manifest.files["head.onnx"] == again.manifest.files["head.onnx"]
    before, after = (
        {each.name: each.value for each in one.manifest.metrics if each.name == "accuracy_across_folds"}
        for one in (ours, again)
    )
    assert before == after


def test_shuffled_labels_are_said_to_be_no_better_than_chance(
    garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(garments.rglob("*.png"))
    labels = [each.parent.name for each in files]
    random.Random(0).shuffle(labels)
    for number, (file, label) in enumerate(zip(files, labels, strict=True)):
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "set" / label / f"{number}.png")
    assert auto(tmp_path / "set", tmp_path) == 0
    assert NO_BETTER in capsys.readouterr().out


def test_a_plan_is_a_recipe_and_nothing_is_done(
    garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert auto(garments, tmp_path, "--plan") == 0
    out, err = capsys.readouterr()
    (tmp_path / "plan.toml").write_text(out)
    assert recipes.load(str(tmp_path / "plan.toml"), []).split.folds == 5
    assert "frozen: a linear head" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["2024", "true", 'the "best" ones', "-fotos ü\x7f"])
def test_two_kinds_of_four_images_are_enough_whatever_their_folder_is_called(
    name: str, garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    for kind in sorted(garments.iterdir())[:2]:
        (folder / kind.name).mkdir(parents=True)
        for file in sorted(kind.iterdir())[:4]:
            shutil.copy(file, folder / kind.name)
    assert auto(folder, tmp_path, "--plan") == 0
    (tmp_path / "plan.toml").write_text(capsys.readouterr().out)
    plan = recipes.load(str(tmp_path / "plan.toml"), [])
    assert (plan.target, plan.false_alarm_rate) == (str(folder), 0.112)
    folds = gather(settled(plan)).folds
    assert folds is not None
    assert folds.count == 4


def test_the_false_alarm_rate_is_one_that_the_sound_images_bear_once_some_are_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = sorted(draw_folder(tmp_path / "drawn", 20, seed=4).iterdir())
    shutil.copytree(drawn[0], tmp_path / "steel" / "good")
    shutil.copytree(drawn[1], tmp_path / "steel" / "scratched")
    assert auto(tmp_path / "steel", tmp_path, "--plan") == 0
    (tmp_path / "plan.toml").write_text(capsys.readouterr().out)
    plan = recipes.load(str(tmp_path / "plan.toml"), [])
    assert plan.false_alarm_rate == 0.059, "16 are left to learn from"
    assert len(gather(settled(plan)).calibration) == 16


def test_sound_images_with_defects_beside_them_are_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_inspection(tmp_path / "parts", sound=24, defects=6, side=64)
    assert auto(folder, tmp_path, "--size", "small") == 0
    out, err = capsys.readouterr()
    assert "24 sound images (good) to learn from, 12 images of defects to be tested on" in err
    assert "defective images defective" in out
    assert load(tmp_path / "models" / "parts" / "1").peaks is not None, "it knows regions"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resume",), None),
        (("--minutes", "0"), None),
        (("--for", "regress"), None),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[str, ...], message: str | None, garments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["auto", str(garments), *arguments])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 2
    assert capsys.readouterr().err


def test_folders_that_teach_nothing_are_refused_in_a_sentence(
    tmp_path: Path, garments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one"
    shutil.copytree(next(garments.iterdir()), one / "kind")
    assert auto(one, tmp_path, "--for", "classify") == 2
    assert "nothing to classify: put each kind into a folder" in capsys.readouterr().err
    few = tmp_path / "few"
    for number, kind in enumerate(sorted(garments.iterdir())):
        (few / kind.name).mkdir(parents=True)
        for file in sorted(kind.iterdir())[: 8 - 5 * (number == 0)]:
            shutil.copy(file, few / kind.name)
    assert auto(few, tmp_path) == 2
    assert "fewer than 4 images of" in capsys.readouterr().err
    parted = tmp_path / "parted"
    shutil.copytree(garments, parted / "train")
    shutil.copytree(garments, parted / "test")
    shutil.move(next(iter((parted / "test").iterdir())), parted / "test" / "other")
    assert auto(parted, tmp_path, "--plan") == 2
    assert "the test part has classes that the training part lacks (other)" in capsys.readouterr().err
    (tmp_path / "lone").mkdir()
    shutil.copy(next(one.rglob("*.png")), tmp_path / "lone")
    assert auto(tmp_path / "lone", tmp_path, "--plan") == 2
    assert "1 images to learn from, and 4 are needed" in capsys.readouterr().err
    assert auto(tmp_path / "none", tmp_path) == 2
    assert "neither a named data set" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_run_that_was_killed_goes_on_and_one_that_is_there_is_not_overwritten(
    garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--models", str(tmp_path / "models"), "--run", str(tmp_path / "run"), "--minutes", "60"]
    command = [sys.executable, "-m", "training", "auto", str(garments), *own]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    folds = tmp_path / "run" / "frozen" / "folds"
    deadline = time.monotonic() + 300
    while not list(folds.glob("[0-9]*.npz")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    known = {each.name: each.stat().st_mtime_ns for each in folds.glob("[0-9]*.npz")}
    assert known
    assert auto(garments, tmp_path) == 2
    assert "already exists: resume it with --resume" in capsys.readouterr().err
    assert auto(garments, tmp_path, "--resume") == 0
    assert {name: (folds / name).stat().st_mtime_ns for name in known} == known
    assert np.isfinite([each.value for each in load(tmp_path / "models" / "garments" / "1").manifest.metrics]).all()
