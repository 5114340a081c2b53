"""What real runs write to the index: begun, published, stopped, killed, failed, two at once, and damage."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.bundle import load
from training import jsonl
from training.__main__ import main
from training.recipe import Recipe
from training.recipe import load as load_recipe
from training.tracking.index import INDEX_FILE, reach, read

SMALL = ("network.kind=dense", "network.hidden=16", "network.latent=8", "pretrain.epochs=1")


def pretrain(recipe: Path, run: Path, *changes: str) -> list[str]:
    sets = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    return ["pretrain", str(recipe), "--run", str(run), *sets]


@contextmanager
def training(arguments: list[str], run: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains, from its first epoch on."""
    with subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    ) as process:
        try:
            while not (run / "metrics.jsonl").exists():
                assert process.poll() is None
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.communicate()


def states(folder: Path) -> list[str]:
    return [line["state"] for line in jsonl.read(folder / INDEX_FILE)]


def listed(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["runs", "--folder", str(folder), *more]) == 0
    return capsys.readouterr().out


def test_a_run_that_publishes_has_the_bundles_metrics(trained: Path, recipe: Path) -> None:
    begun, done = jsonl.read(trained / INDEX_FILE)
    assert (begun["state"], done["state"]) == ("running", "published")
    assert begun["settings"] == done["settings"] == json.loads((trained / "run/recipe.json").read_text())
    manifest = load(trained / "models/drawn/1").manifest
    assert done["commit"] == manifest.provenance.commit
    own, stated = (found["torch"].partition("+")[0] for found in (done["versions"], manifest.provenance.versions))
    assert own == stated, "but for the build's label, which the package's metadata may lack"
    assert done["data"] == manifest.provenance.data
    [run] = read(trained)
    assert (run.name, run.state, run.task, run.recipe) == ("run", "published", "run", "drawn")
    assert Path(run.bundle) == trained / "models/drawn/1"
    expected = {m.name: {"value": m.value, "images": m.images, "how": m.how} for m in manifest.metrics}
    assert run.metrics == expected
    assert run.started < run.time
    assert run.minutes is not None
    assert run.minutes > 0
    assert str(recipe) in run.resume


def test_export_adds_the_metrics_of_a_run_that_was_trained_without(recipe: Path, tmp_path: Path) -> None:
    sets = [part for change in (*SMALL, "transfer.epochs=1") for part in ("--set", change)]
    assert main(["transfer", str(recipe), "--run", str(tmp_path / "run"), *sets]) == 0
    [before] = read(tmp_path)
    assert (before.state, before.metrics) == ("trained", {})
    assert main(["export", str(tmp_path / "run"), "--models", str(tmp_path / "models")]) == 0
    [run] = read(tmp_path)
    assert (run.state, run.bundle, run.started) == ("published", str(tmp_path / "models/drawn/1"), before.started)
    assert 0 <= run.metrics["accuracy"]["value"] <= 1


def test_a_run_that_goes_on_is_running_and_no_other_process_may_train_it(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pretrain(recipe, tmp_path / "run", "pretrain.epochs=1000")
    with training(arguments, tmp_path / "run"):
        assert " running " in listed(tmp_path, capsys)
        assert " running " in listed(tmp_path, capsys), "who looks takes no lock away"
        assert main([*arguments, "--resume"]) == 2
        assert "another process is training this run" in capsys.readouterr().err
        assert states(tmp_path) == ["running"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_cut_off_is_listed_with_the_command_that_resumes_it(
    by: signal.Signals, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pretrain(recipe, tmp_path / "my run", "pretrain.epochs=200")
    with training(arguments, tmp_path / "my run") as process:
        process.send_signal(by)
        process.wait(timeout=60)
    assert states(tmp_path) == ["running", "stopped"] if by == signal.SIGINT else ["running"]
    out = listed(tmp_path, capsys)
    assert " stopped " in out
    [resume] = [line for line in out.splitlines() if line.startswith("resume my run: ")]
    program, *words = shlex.split(resume.partition(": ")[2])
    assert program == "graft-train"
    assert main(words) == 0
    [run] = read(tmp_path)
    assert run.state == "pretrained"
    assert "resume" not in listed(tmp_path, capsys)


def test_a_run_that_fails_is_listed_with_its_error(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pretrain(recipe, tmp_path / "run")
    assert main(arguments) == 0
    (tmp_path / "run/checkpoints/pretrain.pt").write_bytes(b"PK")
    assert main([*arguments, "--resume"]) == 2
    error = capsys.readouterr().err.partition("graft-train: ")[2].strip()
    assert states(tmp_path)[-1] == "failed"
    assert f"run failed: {error}" in listed(tmp_path, capsys)
    (tmp_path / "run/checkpoints/pretrain.pt").unlink()
    assert main([*arguments, "--resume"]) == 0
    [run] = read(tmp_path)
    assert (run.state, run.error) == ("pretrained", "")


def test_a_run_that_could_not_begin_is_not_listed(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert main(pretrain(recipe, tmp_path / "run")) == 2
    assert not (tmp_path / INDEX_FILE).exists()


WRITER = """
import sys
from pathlib import Path
from training.recipe import load
from training.tracking.index import reach
recipe = load("seed", ["title=" + 100_000 * "x"])
for number in range(100):
    reach(Path(sys.argv[1]) / f"{sys.argv[2]}-{number}", recipe, "running")
"""


def test_processes_that_write_at_once_lose_no_line(tmp_path: Path) -> None:
    """Lines longer than any buffer that a file object would write by. Blank ones may stand between them."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    names = [json.loads(line)["run"] for line in (tmp_path / INDEX_FILE).read_text().splitlines() if line]
    assert sorted(names) == sorted(f"{name}-{number}" for name in "abc" for number in range(100))
    for name in "abc":
        own = [each for each in names if each.startswith(name)]
        assert own == [f"{name}-{number}" for number in range(100)]


@pytest.fixture
def recorded(trained: Path, tmp_path: Path) -> Path:
    """The runs' folder with a copy of a published run, and of its two lines."""
    shutil.copytree(trained / "run", tmp_path / "runs/run")
    shutil.copy(trained / INDEX_FILE, tmp_path / "runs")
    return tmp_path / "runs"


def seed() -> Recipe:
    return load_recipe("seed", [])


def test_a_line_cut_short_costs_no_run_and_the_next_begins_anew(recorded: Path, trained: Path) -> None:
    index = recorded / INDEX_FILE
    index.write_bytes(index.read_bytes()[:-100])
    [run] = read(recorded)
    assert run.state == "published", "its folder says so"
    [whole] = read(trained)
    assert {name: metric["value"] for name, metric in run.metrics.items()} == {
        name: metric["value"] for name, metric in whole.metrics.items()
    }
    reach(recorded / "next", seed(), "trained")
    assert [(run.name, run.state) for run in read(recorded)] == [("run", "published"), ("next", "trained")]


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../elsewhere"},
        {"run": ".."},
        {"run": ""},
        {"run": "a\0b"},
        {"run": 3},
        {"state": "flying"},
        {"time": "yesterday"},
        {"time": "2026-01-01T00:00:00"},
        {"time": None},
    ],
    ids=str,
)
def test_lines_that_are_no_rows_are_passed_over(change: dict[str, Any], recorded: Path) -> None:
    [line, _] = jsonl.read(recorded / INDEX_FILE)
    with (recorded / INDEX_FILE).open("a") as file:
        file.write(json.dumps({**line, "run": "other"} | change) + "\n")
    assert [run.name for run in read(recorded)] == ["run"]


def test_fields_of_another_kind_are_passed_over(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = jsonl.read(recorded / INDEX_FILE)[-1]
    wrong = {"settings": 3, "minutes": "long", "resume": None, "metrics": {"accuracy": 1, "auroc": {"value": "high"}}}
    wrong |= {"data": {"target/test": {}}, "bundle": ["a"]}
    with (recorded / INDEX_FILE).open("a") as file:
        file.write(json.dumps({**line, "run": "other", **wrong}) + "\n")
    assert "other  published " in listed(recorded, capsys)
    assert "its recipe is lost" in listed(recorded, capsys)


def test_runs_without_a_row_are_read_from_their_folders(recorded: Path, trained: Path) -> None:
    (recorded / INDEX_FILE).unlink()
    (recorded / "notes").mkdir()
    [run], [whole] = read(recorded), read(trained)
    assert (run.name, run.state, run.bundle, run.settings) == ("run", "published", whole.bundle, whole.settings)
    assert run.metrics["accuracy"]["value"] == whole.metrics["accuracy"]["value"]
    assert run.data == whole.data


def test_the_index_moves_with_the_folder_of_the_runs(recorded: Path, tmp_path: Path) -> None:
    recorded.rename(tmp_path / "moved")
    [run] = read(tmp_path / "moved")
    assert run.stays
    assert run.folder == tmp_path / "moved/run"


def test_another_programs_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / INDEX_FILE).write_text('{"document": 1}\n')
    reach(tmp_path / "run", seed(), "running")
    assert "another program's file" in capsys.readouterr().err
    assert (tmp_path / INDEX_FILE).read_text() == '{"document": 1}\n'


def test_a_run_goes_on_where_the_index_cannot_be_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / INDEX_FILE).symlink_to(tmp_path / "nowhere/index.jsonl")
    assert main(pretrain(recipe, tmp_path / "run")) == 0
    assert f"note: {tmp_path / INDEX_FILE}: cannot be written: No such file" in capsys.readouterr().err
    assert [run.name for run in read(tmp_path)] == ["run"], "read from its folder"
