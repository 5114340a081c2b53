import tomllib
from pathlib import Path

import pytest
from support import draw_folder

from training.__main__ import main


def test_a_search_finds_what_is_better_goes_on_and_writes_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_folder(tmp_path / "set", 8, seed=5)
    space = tmp_path / "space.toml"
    space.write_text('"transfer.reads" = ["features", "embedding"]\n"input.height" = [32, 64]\n')
    command = ["tune", "photos", "--space", str(space), "--run", str(tmp_path / "search"), "--minutes", "60"]
    command += ["--set", f"source={folder}", "--set", f"target={folder}", "--set", "split.folds=2"]
    command += ["--set", "input.width=32", "--set", "false_alarm_rate=0.1"]
    assert main([*command, "--trials", "2"]) == 0
    out, err = capsys.readouterr()
    best = Path(out.strip())
    assert tomllib.loads(best.read_text())["split"]["folds"] == 2
    assert "best of" in err
    assert main([*command, "--trials", "1"]) == 0
    assert "2: " in capsys.readouterr().err, "the third trial of the same search"


def test_settings_that_fail_end_the_search_with_their_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.toml"
    space.write_text('"transfer.rate" = [0.1]\n')
    assert main(["tune", "photos", "--space", str(space), "--run", str(tmp_path / "search")]) == 2
    said = capsys.readouterr().err
    assert "the first 3 trials failed" in said
    assert "transfer.rate belongs to" in said


def test_a_recipe_without_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.toml"
    space.write_text("seed = [1, 2]\n")
    assert main(["tune", "inspect", "--space", str(space), "--run", str(tmp_path / "search")]) == 2
    assert "learns no labels of the target to be judged by" in capsys.readouterr().err
