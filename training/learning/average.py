"""The exponential moving average of weights: what is evaluated and kept in the place of the last step's."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Copies of modules. After step t, from 1 on, they hold decay · copy + (1 - decay) · module, with the decay
    min(decay, (1 + t) / (10 + t)): the first steps, which are far from the goal, are soon forgotten.

    Running statistics of norms are averaged as weights are; counts are copied.
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.modules = {name: copy.deepcopy(module).requires_grad_(False) for name, module in modules.items()}
        self.steps = 0
        self._decay, self._of = decay, modules

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        for own, other in self._pairs():
            if own.is_floating_point():
                own.lerp_(other, 1 - decay)
            else:
                own.copy_(other)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules hold the averages inside the `with`."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for own, other in self._pairs():
            own.data, other.data = other.data, own.data

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name, module in self.modules.items():
            yield from zip(_tensors(module), _tensors(self._of[name]), strict=True)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
