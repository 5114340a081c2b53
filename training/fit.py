"""The one training loop."""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from training.errors import TrainingError
from training.progress import say, track
from training.recipe import Stage

Loss = Callable[[Tensor], Tensor]  # indices of a batch's images → the mean loss over them
WARM_UP = 0.05  # of all steps


class Journal:
    """metrics.jsonl: a line for every epoch of every stage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **facts: float | str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")


def rate_at(step: int, steps: int, peak: float) -> float:
    """A straight rise over the first steps, then half a cosine down to nothing."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def fit(
    what: str,
    modules: Iterable[nn.Module],
    loss_of: Loss,
    images: int,
    stage: Stage,
    journal: Journal,
    validate: Callable[[], float],
) -> None:
    """Train the modules' parameters; `validate` gives the loss on held-out images, shown and written down."""
    modules = list(modules)
    optimiser = torch.optim.Adam([p for module in modules for p in module.parameters()], lr=stage.rate)
    per_epoch = math.ceil(images / stage.batch)
    for epoch in range(stage.epochs):
        for module in modules:
            module.train()
        start, total = time.monotonic(), torch.zeros(())
        order = torch.split(torch.randperm(images), stage.batch)
        for number, batch in enumerate(track(order, f"{what} {epoch + 1}/{stage.epochs}", per_epoch)):
            for group in optimiser.param_groups:
                group["lr"] = rate_at(epoch * per_epoch + number, stage.epochs * per_epoch, stage.rate)
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.detach() * len(batch)
        mean, seconds = total.item() / images, time.monotonic() - start
        if not math.isfinite(mean):
            raise TrainingError(f"{what}: the loss is {mean} in epoch {epoch + 1}; try a lower rate than {stage.rate}")
        for module in modules:
            module.eval()
        with torch.no_grad():
            held_out = validate()
        journal.write(stage=what, epoch=epoch + 1, loss=mean, validation_loss=held_out, seconds=seconds)
        say(
            f"{what} {epoch + 1}/{stage.epochs}: loss {mean:.5f}, on validation {held_out:.5f}, "
            f"{images / seconds:,.0f} images/s, {(stage.epochs - epoch - 1) * seconds:,.0f} s left"
        )
