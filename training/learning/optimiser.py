"""Learning rates by the step, and optimisers by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from training.recipe import Stage

Groups = list[dict[str, Any]]

WARM_UP = 0.05  # of all steps, before a cosine falls
ONE_CYCLE_RISE = 0.3


def rate_at(stage: Stage, step: int, steps: int) -> float:
    """cosine: a short straight rise, then half a cosine down to nothing; one-cycle: a longer rise, a cosine too."""
    if stage.schedule == "constant":
        return stage.rate
    rise = max(1, round((WARM_UP if stage.schedule == "cosine" else ONE_CYCLE_RISE) * steps))
    if step < rise:
        share = (step + 1) / rise
        return stage.rate * (share if stage.schedule == "cosine" else 0.5 * (1 - math.cos(math.pi * share)))
    return stage.rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def groups_of(stage: Stage, name: str, module: nn.Module, share: float) -> Groups:
    """A module's parameters; with a decay of weights, norms and biases, which have one axis, stand apart without it.

    `share` is that of the stage's rate.
    """
    parameters = list(module.parameters())
    if not stage.weight_decay:
        return [{"params": parameters, "share": share, "name": name}] if parameters else []
    parts = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    return [
        {"params": part, "share": share, "name": name, "weight_decay": decay}
        for part, decay in zip(parts, (stage.weight_decay, 0.0), strict=True)
        if part
    ]


def _sgd(groups: Groups, stage: Stage) -> Optimizer:
    return torch.optim.SGD(
        groups,
        lr=stage.rate,
        momentum=stage.momentum,
        weight_decay=stage.weight_decay,
        nesterov=stage.momentum > 0,
        fused=True,
    )


OPTIMISERS: dict[str, Callable[[Groups, Stage], Optimizer]] = {
    "adam": lambda groups, s: torch.optim.Adam(groups, lr=s.rate, weight_decay=s.weight_decay, fused=True),
    "adamw": lambda groups, s: torch.optim.AdamW(groups, lr=s.rate, weight_decay=s.weight_decay, fused=True),
    "sgd": _sgd,
    "rmsprop": lambda groups, s: torch.optim.RMSprop(groups, lr=s.rate, weight_decay=s.weight_decay),
}


def optimiser_of(stage: Stage, groups: Groups) -> Optimizer:
    """`groups` are torch's parameter groups."""
    return OPTIMISERS[stage.optimiser](groups, stage)
