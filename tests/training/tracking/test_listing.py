"""`graft-train runs`: two real runs in a table and side by side."""

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support import ROOT

from training.__main__ import main
from training.tracking.index import Run, read
from training.tracking.listing import by_metric, table

SMALL = ("network.kind=dense", "network.hidden=16", "network.latent=8", "pretrain.epochs=1", "decoder.epochs=1")


@pytest.fixture(scope="module")
def both(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    for name, changes in (("one", ("transfer.epochs=1",)), ("two", ("transfer.epochs=15", "seed=1"))):
        sets = [part for change in (*SMALL, *changes) for part in ("--set", change)]
        run = ["--models", str(folder / "models"), "--run", str(folder / name)]
        assert main(["run", str(recipe), *run, *sets]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["runs", "--folder", str(folder), *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["runs", "--folder", str(folder), *arguments]) == 2
    return capsys.readouterr().err


def accuracies(folder: Path) -> dict[str, float]:
    return {run.name: run.metrics["accuracy"]["value"] for run in read(folder)}


def test_the_table_has_the_newest_last_and_what_changed(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, one, two = printed(capsys, both).splitlines()
    assert re.split(r"  +", head) == [
        *("run", "state", "started", "minutes", "bundle", "accuracy", "false_alarm_rate"),
        "changed since the one before",
    ]
    [_, first], [_, second] = accuracies(both).items()
    cells = re.split(r"  +", one)
    assert (cells[0], cells[1], cells[4], cells[5]) == ("one", "published", "drawn/1", f"{first:.4f}")
    assert cells[-1] == "the first of drawn"
    cells = re.split(r"  +", two)
    assert (cells[0], cells[4], cells[5]) == ("two", "drawn/2", f"{second:.4f}")
    assert cells[-1] == "seed 0 → 1, transfer.epochs 1 → 15"


def test_names_recipes_and_patterns_choose(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, chosen in (("two", ["two"]), ("drawn", ["one", "two"]), ("o*", ["one"]), (str(both / "two"), ["two"])):
        lines = printed(capsys, both, name).splitlines()[1:]
        assert [line.split()[0] for line in lines] == chosen, name
    [_, two] = printed(capsys, both, "two").splitlines()
    assert two.endswith("transfer.epochs 1 → 15"), "what changed is told against runs that are not listed, too"


def test_the_best_stands_first_where_a_metric_sorts(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = accuracies(both)
    assert values["two"] > values["one"], "the longer training is better, or this test shows nothing"
    for metric, chosen in (("accuracy", ["two", "one"]), ("calibration_error", None)):
        lines = printed(capsys, both, "--sort", metric).splitlines()
        assert metric in lines[0].split()
        listed = [line.split()[0] for line in lines[1:3]]
        by_value = sorted(read(both), key=lambda run: run.metrics[metric]["value"])
        assert listed == (chosen or [run.name for run in by_value])


def test_two_runs_side_by_side(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        re.split(r"  +", line)[0]: re.split(r"  +", line)[1:]
        for line in printed(capsys, both, "--compare", "one", "two").splitlines()
    }
    values = accuracies(both)
    difference = f"{values['two']:.4f} ({values['two'] - values['one']:+.4f})"
    assert lines["accuracy"] == [f"{values['one']:.4f}", difference]
    assert lines["transfer.epochs"] == ["1", "15"]
    assert lines["seed"] == ["0", "1"]
    assert not {"pretrain.epochs", "title", "all settings are the same"} & lines.keys()


def test_a_deleted_folder_is_compared_all_the_same(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(both, tmp_path / "copy")
    before = printed(capsys, both, "--compare", "one", "two")
    shutil.rmtree(tmp_path / "copy/one")
    assert printed(capsys, tmp_path / "copy", "--compare", "one", "two") == before


def test_runs_are_compared_by_the_paths_of_their_folders(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(both, tmp_path / "elsewhere")
    head, *_ = printed(capsys, both, "--compare", "one", str(tmp_path / "elsewhere/two")).splitlines()
    assert head.split() == ["one", "two"]
    shutil.rmtree(tmp_path / "elsewhere/two")
    assert "transfer.epochs" in printed(capsys, both, "--compare", "one", str(tmp_path / "elsewhere/two"))
    out = printed(capsys, both, "--compare", str(both / "one"), str(tmp_path / "elsewhere/one"))
    assert "all settings are the same" in out


def test_all_that_is_known_comes_as_json(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, both, "--json"))
    assert [row["run"] for row in rows] == ["one", "two"]
    for row in rows:
        assert row["settings"] == json.loads((both / row["run"] / "recipe.json").read_text())
        assert row["metrics"]["accuracy"]["images"] == 120
    compared = json.loads(printed(capsys, both, "--compare", "one", "two", "--json"))
    assert compared["settings"] == {"seed": [0, 1], "transfer.epochs": [1, 15]}
    assert compared["metrics"]["accuracy"] == list(accuracies(both).values())


def test_numbers_of_other_test_images_are_not_compared_unsaid(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(both, tmp_path / "copy")
    index = tmp_path / "copy/index.jsonl"
    *others, last = index.read_text().splitlines()
    changed = json.loads(last)
    changed["data"]["target/test"] = "0" * 64
    index.write_text("\n".join([*others, json.dumps(changed)]) + "\n")
    for arguments in ((), ("--compare", "one", "two")):
        assert "on 2 different sets of test images" in printed(capsys, tmp_path / "copy", *arguments)
        assert "different sets" not in printed(capsys, both, *arguments)


def test_what_is_typed_wrong_is_told_with_the_mend(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, tmp_path)
    assert f"{tmp_path}: no runs yet: begin one with graft-train run RECIPE" in error
    assert "no runs yet" in refused(capsys, tmp_path / "nowhere")
    error = refused(capsys, both, "three")
    assert f"{both / 'index.jsonl'}: no run or recipe is called three; the last runs are two, one" in error
    assert "no run is called three" in refused(capsys, both, "--compare", "one", "three")
    assert "--sort f1: no run has it; they have accuracy, " in refused(capsys, both, "--sort", "f1")
    assert "--compare RUN RUN takes two runs or more" in refused(capsys, both, "--compare", "one")
    assert "neither NAME nor --sort" in refused(capsys, both, "--compare", "one", "two", "--sort", "accuracy")


def run(name: str, day: int, **facts: object) -> Run:
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
    settings = {"name": "parts", "seed": day, "transfer": {"mode": "head", "rate": day / 10}, "batch": day, "a": day}
    fields = {"state": "published", "settings": settings, **facts}
    return Run(Path("runs") / name, started=moment, time=moment, **fields)  # type: ignore[arg-type]


def test_runs_without_the_metric_come_last_and_a_low_error_first() -> None:
    runs = [run("none", 0), *(run(str(mse), 1, metrics={"pca_mse": {"value": mse}}) for mse in (0.3, 0.1, 0.2))]
    assert [each.name for each in by_metric(runs, "pca_mse")] == ["0.1", "0.2", "0.3", "none"]


def test_a_metric_that_was_measured_in_two_ways_is_pointed_out() -> None:
    """Out of fold and on a test part, say; numbers within the words are no other way."""

    def measured(day: int, how: str) -> Run:
        return run(str(day), day, metrics={"accuracy": {"value": 0.9, "how": how}})

    runs = [
        measured(1, "all 120 test images, against noise (0.91)"),
        measured(2, "all 80 test images, against noise (1)"),
    ]
    assert len(list(table(runs, runs))) == 3
    runs.append(measured(3, "5 folds"))
    *_, note = table(runs, runs)
    assert note.startswith("note: accuracy was measured in 2 ways: ")


def test_many_changes_are_counted_and_names_stay_on_their_line() -> None:
    runs = [run("first\nrun", 1), run("second", 2)]
    head, first, second = table(runs, runs)
    assert first.startswith("first\\nrun  published")
    assert second.endswith("seed 1 → 2, transfer.rate 0.1 → 0.2, batch 1 → 2 and 1 more")
    assert head.index("started") == first.index("2026-01-0") == second.index("2026-01-0")


def test_the_script_of_the_page_sends_runs_to_mlflow_once(both: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: nothing to send runs to")
    [script] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/tracking.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = subprocess.run(
        [sys.executable, "-m", "training", "runs", "--folder", str(both), "--json"], capture_output=True, check=True
    )
    found = "import mlflow; print(mlflow.search_runs(experiment_names=['graft']).to_json(orient='records'))"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], input=listed.stdout, cwd=tmp_path, check=True)
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, cwd=tmp_path, check=True)
    rows = json.loads(done.stdout)
    assert len(rows) == 2
    sent = {row["tags.mlflow.runName"]: row["metrics.accuracy"] for row in rows}
    assert sent == pytest.approx(accuracies(both))  # pandas prints ten digits
    assert {row["params.transfer.epochs"] for row in rows} == {"1", "15"}
    assert {"metrics.head/loss", "metrics.decoder/loss"} <= rows[0].keys()
