import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from training.errors import TrainingError
from training.fit import Journal, fit, rate_at
from training.recipe import Stage


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [rate_at(step, 1000, 0.1) for step in range(1000)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-6
    assert rate_at(0, 1, 0.1) == 0.1


def learn(stage: Stage, folder: Path, seed: int = 0) -> nn.Linear:
    """A line through points that lie on one."""
    torch.manual_seed(seed)
    x = torch.randn(256, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [3.0]])
    line = nn.Linear(3, 1)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return (line(x[batch]) - y[batch]).square().mean()

    fit("line", [line], loss, len(x), stage, Journal(folder / "metrics.jsonl"), lambda: loss(torch.arange(256)).item())
    return line


def test_it_learns_writes_down_every_epoch_and_repeats_by_its_seed(tmp_path: Path) -> None:
    stage = Stage(epochs=20, batch=32, rate=0.1)
    first, second, other = learn(stage, tmp_path), learn(stage, tmp_path), learn(stage, tmp_path, seed=1)
    assert torch.allclose(first.weight, torch.tensor([[1.0, -2.0, 3.0]]), atol=1e-2)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [*range(1, 21)] * 3
    assert lines[19]["validation_loss"] < lines[0]["validation_loss"]


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(tmp_path: Path) -> None:
    line = nn.Linear(1, 1)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return line(torch.ones(1, 1)).sum() * math.nan

    with pytest.raises(TrainingError, match=r"line: the loss is nan in epoch 1; try a lower rate than 0\.001"):
        fit("line", [line], loss, 4, Stage(), Journal(tmp_path / "m"), lambda: 0.0)
