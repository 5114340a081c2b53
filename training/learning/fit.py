"""The one training loop."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from training import ranks
from training.errors import TrainingError
from training.learning import distributed
from training.learning.average import Average
from training.learning.checkpoint import Checkpoints, Reached
from training.learning.distributed import Loss
from training.learning.journal import Journal
from training.learning.normalisation import norms
from training.learning.optimiser import groups_of, optimiser_of, rate_at
from training.progress import say, track
from training.recipe import Stage


def _none(_progress: float) -> set[str]:
    return set()


@dataclass(frozen=True)
class Task:
    """What one stage trains, and how it is validated."""

    name: str  # of the stage: in messages, journal and checkpoints
    modules: dict[str, nn.Module]  # those that learn
    loss: Loss
    images: int  # in an epoch
    validate: Callable[[], float]  # the loss on held-out images
    rate_shares: Mapping[str, float] = field(default_factory=dict)  # a module's rate, as a share of the stage's
    frozen: Callable[[float], set[str]] = _none  # share of the epochs done → modules that do not learn yet
    keep: Literal["best", "last"] = "best"  # the epoch with the lowest validation loss, or the last one
    freeze_norms: bool = False  # batch norms stay in evaluation mode: they use their statistics and do not update them


def fit(task: Task, stage: Stage, journal: Journal, checkpoints: Checkpoints) -> None:
    """Train the modules of a task. A finished stage is skipped, an interrupted one resumes."""
    what, modules = task.name, task.modules
    if checkpoints.finished(what, modules):
        say(f"{what}: finished earlier")
        for module in modules.values():
            module.eval()
        return
    groups = [
        group
        for name, module in modules.items()
        for group in groups_of(stage, name, module, task.rate_shares.get(name, 1.0))
    ]
    optimiser = optimiser_of(stage, groups)
    average = Average(modules, stage.ema) if stage.ema else None
    reached = checkpoints.resume(what, modules, optimiser, average)
    journal.rewind(what, reached.epochs)
    per_epoch = len(_batches(torch.arange(task.images), stage.batch))
    steps = stage.epochs * per_epoch
    for epoch in range(reached.epochs, stage.epochs):
        if stage.patience is not None and reached.since_best >= stage.patience:
            say(f"{what}: no improvement for {reached.since_best} epochs; the best, {reached.best:.5f}, is kept")
            break
        _free(task, epoch / stage.epochs)
        start, total = time.monotonic(), 0.0
        order = _batches(distributed.shuffled(task.images), stage.batch)
        share_of_loss = distributed.shared_out(modules, task.loss)
        for number, batch in enumerate(track(order, f"{what} {epoch + 1}/{stage.epochs}", per_epoch)):
            step = epoch * per_epoch + number
            for group in optimiser.param_groups:
                group["lr"] = group["share"] * rate_at(stage, step, steps)
            optimiser.zero_grad(set_to_none=True)
            loss = share_of_loss(batch, step / steps)
            loss.backward()  # type: ignore[no-untyped-call]
            if stage.clip is not None:
                torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], stage.clip)
            optimiser.step()
            if average is not None:
                average.update()
            value = loss.item()
            _require_finite(value, what, f"in step {number + 1} of epoch {epoch + 1}", stage)
            total += value * len(batch)
        mean, seconds = distributed.mean(total) / task.images, time.monotonic() - start
        distributed.agree(modules)
        if average is not None:
            distributed.agree(average.modules)
        held_out = _held_out(task, average)
        _require_finite(held_out, what, f"on validation after epoch {epoch + 1}", stage)
        better = task.keep == "last" or held_out < reached.best
        reached = Reached(epoch + 1, min(reached.best, held_out), 0 if better else reached.since_best + 1)
        checkpoints.save(what, reached, modules, optimiser, average=average)
        journal.write(stage=what, epoch=epoch + 1, loss=mean, validation_loss=held_out, seconds=seconds)
        say(
            f"{what} {epoch + 1}/{stage.epochs}: loss {mean:.5f}, on validation {held_out:.5f}, "
            f"{task.images / seconds:,.0f} images/s, {(stage.epochs - epoch - 1) * seconds:,.0f} s left"
        )
    checkpoints.restore_best(what, modules)
    for module in modules.values():
        module.requires_grad_(True)
        module.eval()
    checkpoints.finish(what, modules)


def _free(task: Task, progress: float) -> None:
    """Modules that learn are in training mode; after `progress`, a share of the epochs, some may still be frozen."""
    still = task.frozen(progress)
    for name, module in task.modules.items():
        module.train(name not in still)
        module.requires_grad_(name not in still)
        for norm in norms(module) if task.freeze_norms else ():
            norm.eval()


def _held_out(task: Task, average: Average | None) -> float:
    """The validation loss, of averaged weights where there are such."""
    for module in task.modules.values():
        module.eval()
    with torch.no_grad(), nullcontext() if average is None else average.in_place():
        return task.validate()


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """A last batch too small for two images a rank joins the one before it: batch statistics need two."""
    parts = list(torch.split(order, size))
    if len(parts) > 1 and len(parts[-1]) < 2 * ranks.count():
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _require_finite(loss: float, what: str, where: str, stage: Stage) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"{what}: the loss is {loss} {where}; try a lower rate than {stage.rate}, or a clip")
