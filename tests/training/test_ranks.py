"""Real processes that meet over gloo: started by torchrun, or forked where its start is not what is tested."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from forked_ranks import train

from app.bundle import load
from training.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text()
[COMMAND] = [line for line in PAGE.splitlines() if line.startswith("torchrun ")]
TWO = [sys.executable, "-m", "torch.distributed.run", *COMMAND.partition(" run ")[0].split()[1:]]
CONV = ("network.kind=conv", "network.width=4", "network.latent=8", "transfer.mode=full", "transfer.reads=features")
SHORT = ("pretrain.epochs=3", "transfer.epochs=3", "transfer.rate=3e-3")


def arguments(recipe: Path, run: Path, changes: Sequence[str] = ()) -> list[str]:
    return ["transfer", str(recipe), "--run", str(run), *(part for change in changes for part in ("--set", change))]


def by_two(*given: str) -> str:
    done = subprocess.run([*TWO, *given], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def by_forks(folder: Path, *given: str) -> str:
    codes, said = train([*given], folder)
    assert codes == [0, 0], said
    return said


def curves(run: Path) -> dict[tuple[str, str], list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stages = dict.fromkeys(line["stage"] for line in lines if "epoch" in line)
    return {
        (stage, name): [line[name] for line in lines if line["stage"] == stage]
        for stage in stages
        for name in ("loss", "validation_loss")
    }


def test_two_processes_publish_once_what_one_would(trained: Path, recipe: Path, tmp_path: Path) -> None:
    """A network without batch normalisation: nothing tells a share of a batch from the batch but the order of sums."""
    by_two("run", str(recipe), "--models", str(tmp_path / "models"), "--run", str(tmp_path / "run"))
    alone, together = curves(trained / "run"), curves(tmp_path / "run")
    assert alone.keys() == together.keys()
    for name, curve in alone.items():
        assert together[name] == pytest.approx(curve, rel=1e-3), name
    assert [path.name for path in (tmp_path / "models/drawn").iterdir()] == ["1"]
    stated = [
        {metric.name: metric.value for metric in load(folder / "models/drawn/1").manifest.metrics}["accuracy"]
        for folder in (trained, tmp_path)
    ]
    assert stated[1] == pytest.approx(stated[0], abs=0.02)
    assert (tmp_path / "run/report.html").is_file()
    states = [json.loads(line)["state"] for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert states == ["running", "published"], "rank 0 alone writes"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_normalisation_by_shares_stays_near(precision: str, recipe: Path, tmp_path: Path) -> None:
    """Over gloo each process normalises by its own half of the batch: near the whole batch's curve, not on it."""
    changes = (*CONV, *SHORT, f"precision={precision}")
    assert main(arguments(recipe, tmp_path / "alone", changes)) == 0
    by_forks(tmp_path, *arguments(recipe, tmp_path / "together", changes))
    alone, together = curves(tmp_path / "alone"), curves(tmp_path / "together")
    for stage in ("pretrain", "full", "decoder"):
        assert together[stage, "loss"] == pytest.approx(alone[stage, "loss"], rel=0.1), stage
    weights = torch.load(tmp_path / "together/weights.pt", weights_only=True)["encoder"]
    assert all(value.isfinite().all() for value in weights.values())


def test_ctrl_c_ends_all_and_they_go_on_to_the_same_weights(images: Path, recipe: Path, tmp_path: Path) -> None:
    """With noise and views drawn at random by each, and a file that cannot be read. torchrun passes Ctrl-C on."""
    shutil.copytree(images / "train", tmp_path / "mine")
    (tmp_path / "mine/bag/0.png").write_bytes(b"no image")
    changes = (*CONV, *SHORT, "objective.noise=0.1", "pretrain.augment.crop=0.5", "pretrain.epochs=6")
    changes = (*changes, f"source={tmp_path}/mine", f"target={tmp_path}/mine")
    sentence = by_forks(tmp_path, *arguments(recipe, tmp_path / "whole", changes))
    assert sentence.count("left out") == 1
    assert sentence.count("pretrain 1/6: ") == 1

    cut = arguments(recipe, tmp_path / "cut", changes)
    with subprocess.Popen([*TWO, *cut], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("pretrain 2/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode != 0
    assert f"resume with the same command and --run {tmp_path / 'cut'} --resume" in rest
    assert "pretrain 6/" not in rest
    by_forks(tmp_path, *cut, "--resume")
    whole, resumed = (torch.load(tmp_path / run / "weights.pt", weights_only=True) for run in ("whole", "cut"))
    for part, weights in whole.items():
        for name, value in weights.items():
            assert torch.equal(value, resumed[part][name]), f"{part}.{name}"


def test_batches_too_small_to_share_are_refused(recipe: Path, tmp_path: Path) -> None:
    codes, said = train(arguments(recipe, tmp_path / "run", ["pretrain.batch=3"]), tmp_path)
    assert codes == [2, 2]
    assert "3 images in a batch, 2 processes: each needs two at least" in said


def test_what_the_first_alone_meets_is_told_and_no_other_process_complains_of_its_end(
    recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [*TWO, *arguments(recipe, tmp_path / "run")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode
    assert f"graft-train, process 0: {tmp_path / 'run'} already exists" in done.stderr
    assert "Connection closed by peer" not in done.stderr


def test_other_commands_are_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setitem(os.environ, name, value)
    assert main(["compare", "quick"]) == 2
    assert "graft-train, process 1: torchrun is for run, pretrain and transfer" in capsys.readouterr().err
