import json
import math
import tempfile
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from training.errors import TrainingError
from training.jsonl import read
from training.learning.checkpoint import Checkpoints
from training.learning.fit import Task, fit
from training.learning.journal import Journal
from training.recipe import Stage


def test_no_batch_is_a_single_image() -> None:
    seen: list[int] = []

    def loss(batch: torch.Tensor, _: float) -> torch.Tensor:
        seen.extend(batch.tolist())
        sizes.append(len(batch))
        return line(torch.ones(1, 1)).sum()

    for images, expected in ((9, [4, 5]), (8, [4, 4]), (10, [4, 4, 2]), (1, [1])):
        line, sizes = nn.Linear(1, 1), list[int]()
        seen.clear()
        with tempfile.TemporaryDirectory() as folder:
            journal, checkpoints = Journal(Path(folder) / "metrics.jsonl"), Checkpoints(Path(folder))
            task = Task("line", {"line": line}, loss, images, validate=lambda: 0.0)
            fit(task, Stage(epochs=1, batch=4), journal, checkpoints)
        assert sizes == expected
        assert sorted(seen) == list(range(images))


def learn(stage: Stage, folder: Path, seed: int = 0, stop_after: int | None = None, share: float = 0.1) -> nn.Linear:
    """A line through points that lie on one; `stop_after` epochs the process is as good as killed."""
    torch.manual_seed(seed)
    x = torch.randn(256, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [3.0]])
    line = nn.Linear(3, 1)

    epochs = 0

    def loss(batch: torch.Tensor, _: float) -> torch.Tensor:
        if epochs == stop_after:
            raise KeyboardInterrupt
        return (line(x[batch]) - y[batch]).square().mean()

    def validate() -> float:
        nonlocal epochs
        value = (line(x) - y).square().mean().item()
        epochs += 1
        return value

    journal, checkpoints = Journal(folder / "metrics.jsonl"), Checkpoints(folder / "checkpoints", share)
    fit(Task("line", {"line": line}, loss, len(x), validate), stage, journal, checkpoints)
    return line


def test_it_learns_writes_down_every_epoch_and_repeats_by_its_seed(tmp_path: Path) -> None:
    stage = Stage(epochs=20, batch=32, rate=0.1)
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder in folders:
        folder.mkdir()
    first, second, other = (learn(stage, folder, seed) for folder, seed in zip(folders, (0, 0, 1), strict=True))
    assert torch.allclose(first.weight, torch.tensor([[1.0, -2.0, 3.0]]), atol=1e-2)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    lines = [json.loads(line) for line in (tmp_path / "first/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [*range(1, 21)]
    assert lines[19]["validation_loss"] < lines[0]["validation_loss"]


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(tmp_path: Path) -> None:
    line = nn.Linear(1, 1)

    def loss(batch: torch.Tensor, _: float) -> torch.Tensor:
        return line(torch.ones(1, 1)).sum() * math.nan

    journal, checkpoints = Journal(tmp_path / "metrics.jsonl"), Checkpoints(tmp_path)
    with pytest.raises(TrainingError, match=r"the loss is nan in step 1 of epoch 1; try a lower rate than 0\.001"):
        fit(Task("line", {"line": line}, loss, 4, lambda: 0.0), Stage(), journal, checkpoints)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("stop_after", [1, 5])
@pytest.mark.parametrize("share", [0.0, math.inf])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    tmp_path: Path, optimiser: Literal["adam", "adamw", "sgd", "rmsprop"], stop_after: int, share: float
) -> None:
    """Whether a checkpoint of the first epoch is left, or of the last that was whole."""
    stage = Stage(epochs=8, batch=32, rate=0.01, optimiser=optimiser, clip=1.0, weight_decay=1e-3)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = learn(stage, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(stage, tmp_path / "cut", stop_after=stop_after, share=share)
    left = torch.load(tmp_path / "cut/checkpoints/last.pt", weights_only=True)
    assert left["epochs"] == (1 if share == 0 else stop_after)
    resumed = learn(stage, tmp_path / "cut", share=share)
    assert torch.equal(whole.weight, resumed.weight)
    curves = [
        [(line["epoch"], line["loss"], line["validation_loss"]) for line in read(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    ]
    assert curves[0] == curves[1], "an epoch that came again is written down once"
    again = learn(stage, tmp_path / "cut", stop_after=0)  # it is done: not a step is taken
    assert torch.equal(whole.weight, again.weight)


@pytest.mark.parametrize("share", [0.0, math.inf])
def test_patience_ends_a_stage_and_the_best_epoch_is_kept(tmp_path: Path, share: float) -> None:
    line = nn.Linear(1, 1)
    seen: list[torch.Tensor] = []
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.5])

    def validate() -> float:
        seen.append(line.weight.detach().clone())
        return next(losses)

    def loss(batch: torch.Tensor, _: float) -> torch.Tensor:
        return line(torch.ones(len(batch), 1)).sum()

    stage = Stage(epochs=6, rate=0.1, patience=3, schedule="constant")
    task = Task("line", {"line": line}, loss, 4, validate)
    fit(task, stage, Journal(tmp_path / "m"), Checkpoints(tmp_path, share))
    assert len(seen) == 5
    assert torch.equal(line.weight, seen[1])


def test_slower_modules_move_less_and_frozen_ones_not_at_all(tmp_path: Path) -> None:
    modules = {name: nn.Linear(1, 1, bias=False) for name in ("top", "slow", "frozen")}
    for module in modules.values():
        nn.init.zeros_(module.weight)

    def loss(batch: torch.Tensor, _: float) -> torch.Tensor:
        return torch.stack([module(torch.ones(len(batch), 1)).mean() for module in modules.values()]).sum()

    stage = Stage(epochs=1, batch=4, rate=0.1, schedule="constant", optimiser="sgd", momentum=0)
    journal, checkpoints = Journal(tmp_path / "m"), Checkpoints(tmp_path)
    task = Task("x", modules, loss, 4, lambda: 0.0, rate_shares={"slow": 0.5}, frozen=lambda _: {"frozen"})
    fit(task, stage, journal, checkpoints)
    moved = {name: module.weight.item() for name, module in modules.items()}
    assert moved == pytest.approx({"top": -0.1, "slow": -0.05, "frozen": 0.0})
    assert all(p.requires_grad for module in modules.values() for p in module.parameters())


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_norms_keep_their_statistics_and_learn_their_weights(tmp_path: Path, freeze: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(64, 3) * 5 + 2
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def loss(batch: torch.Tensor, _: float) -> torch.Tensor:
        return (net(x[batch]) - 1).square().mean()

    task = Task("net", {"net": net}, loss, len(x), lambda: 0.0, freeze_norms=freeze, keep="last")
    fit(task, Stage(epochs=2, batch=16), Journal(tmp_path / "m"), Checkpoints(tmp_path))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert {"0.weight", "1.weight", "1.bias", "2.weight"} <= moved
    assert (statistics & moved) == (set() if freeze else statistics)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "rmsprop"])
def test_weights_decay_and_norms_and_biases_do_not(
    tmp_path: Path, optimiser: Literal["adam", "adamw", "sgd", "rmsprop"]
) -> None:
    """A loss that nothing changes: what moves was decayed."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in net.named_parameters()}
    task = Task("net", {"net": net}, lambda *_: 0 * sum(p.sum() for p in net.parameters()), 4, lambda: 0.0)  # type: ignore[arg-type, return-value]
    stage = Stage(epochs=1, rate=0.01, weight_decay=0.1, optimiser=optimiser, schedule="constant")
    fit(task, stage, Journal(tmp_path / "m"), Checkpoints(tmp_path))
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"0.weight", "2.weight"}
    assert all(p.detach().abs().sum() < before[name].abs().sum() for name, p in net.named_parameters() if name in moved)


def test_an_optimiser_with_other_groups_is_refused_with_the_mend(tmp_path: Path) -> None:
    """As of a run that was interrupted under a Graft whose norms and biases decayed too."""
    stage = Stage(epochs=2, batch=64, weight_decay=0.1)
    with pytest.raises(KeyboardInterrupt):
        learn(stage, tmp_path, stop_after=1)
    last = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)
    line = nn.Linear(3, 1)
    last["optimiser"] = torch.optim.Adam(line.parameters()).state_dict()
    torch.save(last, tmp_path / "checkpoints/last.pt")
    with pytest.raises(TrainingError, match=r"last\.pt: its optimiser has other groups .*; remove it to begin"):
        learn(stage, tmp_path)


def test_tensorboard_gets_the_curves_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: no events to read")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learn(Stage(epochs=3, batch=64), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("line/loss")] == pytest.approx(written, rel=1e-5)
