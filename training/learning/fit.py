"""The one training loop."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training import ranks
from training.errors import TrainingError
from training.learning import distributed
from training.learning.checkpoint import Checkpoints, Reached
from training.learning.distributed import Loss
from training.progress import say, track
from training.recipe import Stage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

WARM_UP = 0.05  # of all steps, before a cosine falls
ONE_CYCLE_RISE = 0.3


class Journal:
    """metrics.jsonl: a line for every epoch of every stage; TensorBoard's events beside it where that is installed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._board = _board(path.parent / "tensorboard") if ranks.first() else None

    def write(self, **facts: float | str) -> None:
        if not ranks.first():
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(facts) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written: {error.strerror}; what was there is kept") from None
        if self._board is not None and "epoch" in facts:
            for name, value in facts.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{facts['stage']}/{name}", value, int(facts["epoch"]))


def _board(folder: Path) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def rate_at(stage: Stage, step: int, steps: int) -> float:
    """cosine: a short straight rise, then half a cosine down to nothing; one-cycle: a longer rise, a cosine too."""
    if stage.schedule == "constant":
        return stage.rate
    rise = max(1, round((WARM_UP if stage.schedule == "cosine" else ONE_CYCLE_RISE) * steps))
    if step < rise:
        share = (step + 1) / rise
        return stage.rate * (share if stage.schedule == "cosine" else 0.5 * (1 - math.cos(math.pi * share)))
    return stage.rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def optimiser_of(stage: Stage, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    match stage.optimiser:
        case "adam":
            return torch.optim.Adam(groups, lr=stage.rate, weight_decay=stage.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=stage.rate, weight_decay=stage.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=stage.rate,
                momentum=stage.momentum,
                weight_decay=stage.weight_decay,
                nesterov=stage.momentum > 0,
                fused=True,
            )
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=stage.rate, weight_decay=stage.weight_decay)


def fit(
    what: str,
    modules: dict[str, nn.Module],
    loss_of: Loss,
    images: int,
    stage: Stage,
    journal: Journal,
    checkpoints: Checkpoints,
    validate: Callable[[], float],
    slower: dict[str, float] | None = None,
    frozen: Callable[[float], set[str]] = lambda _: set(),
    keep_last: bool = False,
) -> None:
    """Train the modules; `validate` gives the loss on held-out images, by which the best epoch is kept, or the last.

    `slower` names modules whose rate is a share of the stage's; `frozen`, by the share of the epochs done, those that
    do not learn yet. A stage that is done already, or half done, goes on from there.
    """
    if checkpoints.finished(what, modules):
        say(f"{what}: done before")
        for module in modules.values():
            module.eval()
        return
    groups = [
        {"params": list(m.parameters()), "share": (slower or {}).get(n, 1.0), "name": n} for n, m in modules.items()
    ]
    optimiser = optimiser_of(stage, [group for group in groups if group["params"]])
    reached = checkpoints.resume(what, modules, optimiser)
    per_epoch = len(_batches(torch.arange(images), stage.batch))
    steps = stage.epochs * per_epoch
    for epoch in range(reached.epochs, stage.epochs):
        if stage.patience is not None and reached.since_best >= stage.patience:
            say(f"{what}: no better for {reached.since_best} epochs; the best, {reached.best:.5f}, is kept")
            break
        still = frozen(epoch / stage.epochs)
        for name, module in modules.items():
            module.train(name not in still)
            module.requires_grad_(name not in still)
        start, total = time.monotonic(), 0.0
        order = _batches(distributed.shuffled(images), stage.batch)
        share_of_loss = distributed.shared_out(modules, loss_of)
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
            value = loss.item()
            _require_finite(value, what, f"in step {number + 1} of epoch {epoch + 1}", stage)
            total += value * len(batch)
        mean, seconds = distributed.mean(total) / images, time.monotonic() - start
        distributed.agree(modules)
        for module in modules.values():
            module.eval()
        with torch.no_grad():
            held_out = validate()
        _require_finite(held_out, what, f"on validation after epoch {epoch + 1}", stage)
        better = keep_last or held_out < reached.best
        reached = Reached(epoch + 1, min(reached.best, held_out), 0 if better else reached.since_best + 1)
        checkpoints.save(what, reached, modules, optimiser)
        journal.write(stage=what, epoch=epoch + 1, loss=mean, validation_loss=held_out, seconds=seconds)
        say(
            f"{what} {epoch + 1}/{stage.epochs}: loss {mean:.5f}, on validation {held_out:.5f}, "
            f"{images / seconds:,.0f} images/s, {(stage.epochs - epoch - 1) * seconds:,.0f} s left"
        )
    checkpoints.restore_best(what, modules)
    for module in modules.values():
        module.requires_grad_(True)
        module.eval()
    checkpoints.finish(what, modules)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """A last batch too small for two images a rank joins the one before it: one has no spread to be normalised by."""
    parts = list(torch.split(order, size))
    if len(parts) > 1 and len(parts[-1]) < 2 * ranks.count():
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _require_finite(loss: float, what: str, where: str, stage: Stage) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"{what}: the loss is {loss} {where}; try a lower rate than {stage.rate}, or a clip")
