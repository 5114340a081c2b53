import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.bundle.drawings import GARMENTS
from training.__main__ import main
from training.compare.arms import ARMS
from training.compare.methods import METHODS

SMALL = ["network.kind=dense", "network.hidden=32", "network.latent=8", "pretrain.epochs=1", "transfer.epochs=2"]
SMALL += ["input.height=16", "input.width=16"]


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    sets = [part for change in (*SMALL, "transfer.reads=features") for part in ("--set", change)]
    return ["compare", str(recipe), "--out", str(out), "--seeds", "2", "--budgets", "5,9999,all", *sets, *more]


def test_every_arm_has_a_method() -> None:
    assert tuple(METHODS) == ARMS


def test_every_arm_is_compared_and_a_comparison_goes_on_where_it_was(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared"
    assert main([*command(recipe, out), "--arms", "pixels,random,scratch"]) == 0
    first = json.loads((out / "comparison.json").read_text())["results"]
    capsys.readouterr()
    assert main(command(recipe, out)) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(out / "comparison.html")
    assert "pixels with" not in output.err, "what was done is not done again"
    results = json.loads((out / "comparison.json").read_text())["results"]
    assert all(result in results for result in first)
    found = {(r["arm"], r["budget"], r["labels"], r["seed"]) for r in results}
    assert found == {
        (arm, budget, budget * len(GARMENTS) if budget else 336, seed)
        for arm in ("pixels", "random", "source", "finetuned", "scratch", "generated")  # target is source: one domain
        for budget in (5, None)  # there are no 9999 of any class
        for seed in (0, 1)
    }
    best = {r["arm"]: r["accuracy"] for r in results if r["budget"] is None and r["seed"] == 0}
    assert best["pixels"] > 0.5, "drawings are easily told apart"
    page = (out / "comparison.html").read_text()
    assert "Against training from scratch" in page

    assert main([*command(recipe, out), "--set", "seed=5"]) == 2
    assert "a comparison of another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "pixels,magic"], "magic is none of pixels"),
        (["--budgets", "ten"], "numbers from 1"),
        (["--budgets", "0"], "numbers from 1"),
        (["--seeds", "1"], "at least 2"),
    ],
)
def test_a_bad_question_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "seed", *arguments])
    assert message in capsys.readouterr().err


def test_ctrl_c_says_that_the_same_command_goes_on(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *command(recipe, out)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("seed 1 of 2, 2 of"):
                process.send_signal(signal.SIGINT)
                break
        output = process.stderr.read()
    assert process.returncode == 128 + signal.SIGINT
    assert f"stopped: results so far are in {out}; the same command resumes from there" in output
    assert "Traceback" not in output
    assert len((out / "results.jsonl").read_text().splitlines()) >= 2
