import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from training.learning.average import Average
from training.learning.checkpoint import Checkpoints
from training.learning.fit import Task, fit
from training.learning.journal import Journal
from training.recipe import Stage


def test_it_is_the_average_that_one_computes_by_hand() -> None:
    norm = nn.BatchNorm1d(1)
    average = Average({"norm": norm}, decay=0.25)
    expected, statistic = 1.0, 0.0
    for step, (weight, mean) in enumerate([(3.0, 5.0), (-1.0, 2.0), (2.0, 8.0)], 1):
        with torch.no_grad():
            norm.weight.fill_(weight)
            norm.running_mean.fill_(mean)  # type: ignore[union-attr]
            norm.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        average.update()
        decay = min(0.25, (1 + step) / (10 + step))  # 2/11, 3/12 and 0.25
        expected, statistic = (decay * old + (1 - decay) * new for old, new in ((expected, weight), (statistic, mean)))
        state = average.modules["norm"].state_dict()
        assert state["weight"].item() == pytest.approx(expected)
        assert state["running_mean"].item() == pytest.approx(statistic)
        assert state["num_batches_tracked"].item() == step
    with average.in_place():
        assert norm.weight.item() == pytest.approx(expected)
    assert norm.weight.item() == 2.0


def learn(folder: Path, ema: float, stop_after: int | None = None) -> tuple[nn.Linear, list[torch.Tensor]]:
    """A line by SGD, and the weight as it was whenever it was validated."""
    torch.manual_seed(0)
    x = torch.randn(64, 1)
    line, seen = nn.Linear(1, 1, bias=False), list[torch.Tensor]()
    nn.init.zeros_(line.weight)

    def loss(batch: torch.Tensor, _: float) -> torch.Tensor:
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        return (line(x[batch]) - 2 * x[batch]).square().mean()

    def validate() -> float:
        seen.append(line.weight.detach().clone())
        return (line(x) - 2 * x).square().mean().item()

    stage = Stage(epochs=4, batch=64, rate=0.1, optimiser="sgd", momentum=0, schedule="constant", ema=ema)
    journal, checkpoints = Journal(folder / "metrics.jsonl"), Checkpoints(folder / "checkpoints", share=math.inf)
    fit(Task("line", {"line": line}, loss, len(x), validate), stage, journal, checkpoints)
    return line, seen


def test_the_averaged_weights_are_evaluated_and_kept_and_learning_goes_on_from_the_last(tmp_path: Path) -> None:
    for name in ("plain", "averaged"):
        (tmp_path / name).mkdir()
    _, steps = learn(tmp_path / "plain", ema=0)  # an epoch is one step
    kept, seen = learn(tmp_path / "averaged", ema=0.5)
    average = torch.zeros(1, 1)
    for number, (weight, validated) in enumerate(zip(steps, seen, strict=True), 1):
        average = torch.lerp(average, weight, 1 - min(0.5, (1 + number) / (10 + number)))
        torch.testing.assert_close(validated, average)
    torch.testing.assert_close(kept.weight.detach(), average)
    lines = [json.loads(line) for line in (tmp_path / "averaged/metrics.jsonl").read_text().splitlines()]
    assert (
        lines[-1]["validation_loss"]
        > json.loads((tmp_path / "plain/metrics.jsonl").read_text().splitlines()[-1])["validation_loss"]
    ), "an average lags behind"


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_that_was_cut_off_goes_on_with_its_averages(tmp_path: Path, stop_after: int) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, _ = learn(tmp_path / "whole", ema=0.5)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", ema=0.5, stop_after=stop_after)
    resumed, seen = learn(tmp_path / "cut", ema=0.5)
    assert len(seen) == 4 - stop_after
    assert torch.equal(whole.weight, resumed.weight)
