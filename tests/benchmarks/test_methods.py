import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from support import ROOT

from benchmarks.methods import adapt
from training.recipe import Recipe


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    command = [sys.executable, "-m", "benchmarks.methods", "--only", "adapt,magic"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "magic is none of adapt" in done.stderr


def test_what_was_measured_is_told_with_intervals_and_what_hurts_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = {"source-only": (0.2, 0.3, 0.4), "statistics": (0.3, 0.3, 0.32), "dann": (0.6, 0.7, 0.9)}
    reached["mmd"] = (0.1, 0.21, 0.29)
    with (tmp_path / "results.jsonl").open("w") as file:
        for source, target in adapt.PAIRS:
            for arm, accuracies in reached.items():
                for seed, accuracy in enumerate(accuracies):
                    found = adapt.Found(source, target, arm, seed, accuracy, 0.99, 0.05)
                    file.write(json.dumps(asdict(found)) + "\n")
    dann, mmd = adapt.measure(tmp_path)
    assert dann.value == pytest.approx(100 * (0.4 + 0.4 + 0.5) / 3)
    assert dann.verdict == "goal"
    assert mmd.value == pytest.approx(-10)
    assert mmd.verdict == "MISSED"
    output = capsys.readouterr().out
    assert "mnist → digits, 3 seeds" in output
    assert "dann: 73.3% (35.4% to 111.3%), source 99.0%, codes apart 0.050; over source-only +43.3 points" in output
    assert "over statistics +42.7 points (+7.4 to +77.9)\n" in output
    assert "over source-only -10.0 points (-12.5 to -7.5), NEGATIVE TRANSFER" in output
    assert "over source-only +0.7 points (-21.7 to +23.1), not shown" in output


def test_arms_differ_in_their_method_alone() -> None:
    pair = adapt.PAIRS[0]
    one, *others = (adapt._recipe(arm, pair, 1) for arm in adapt.ARMS)

    def shared(chosen: Recipe) -> dict[str, object]:
        return chosen.transfer.model_dump(exclude={"mode", "adaptation"})

    for other in others:
        assert shared(other) == shared(one)
        assert other.model_copy(update={"transfer": one.transfer, "name": one.name, "title": one.title}) == one
