"""A run's state on disk: a run that was killed resumes to the same weights."""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from training import ranks
from training.errors import TrainingError, in_short
from training.learning.average import Average

LAST, BEST = "last.pt", "best.pt"


class Reached(NamedTuple):
    epochs: int = 0  # that are done
    best: float = float("inf")  # validation loss
    since_best: int = 0  # epochs


class Checkpoints:
    """`last.pt` holds the end of a whole epoch, `best.pt` the epoch with the lowest validation loss so far.

    They hold everything that the next epoch depends on: weights, optimiser, random state, and the name of the stage.
    Where weights are averaged, `last.pt` holds the averages too, and `best.pt` holds them alone.

    The first epoch of a stage is written, and a later one when the time since the last write is long enough for
    writing to take no more than `share` of it: epochs of one step are not spent on files. A killed run repeats the
    epochs since. A finished stage leaves `<stage>.pt`, its modules' weights. Rank 0 writes and reads for all ranks.
    """

    def __init__(self, folder: Path, share: float = 0.1) -> None:
        self.folder, self.share = folder, share
        self._stage: str | None = None  # of the last write
        self._best: dict[str, Any] | None = None  # what best.pt is to hold and does not yet
        self._written, self._cost = time.monotonic(), 0.0  # when the last write ended, and the seconds it took
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        stage: str,
        reached: Reached,
        modules: dict[str, nn.Module],
        optimiser: Optimizer,
        average: Average | None = None,
    ) -> None:
        if reached.since_best == 0:
            kept = modules if average is None else average.modules
            self._best = {"stage": stage, "modules": _copied(kept)}
        start = time.monotonic()
        if stage == self._stage and self._cost > self.share * (start - self._written):
            return
        self._write_best()  # first: if killed between the two writes, the epoch is repeated
        state = {
            "stage": stage,
            **reached._asdict(),
            "modules": _states(modules),
            "optimiser": optimiser.state_dict(),
            "random": _random_state(),
        }
        if average is not None:
            state |= {"average": _states(average.modules), "averaged_steps": average.steps}
        self._write(LAST, state)
        self._stage, self._written = stage, time.monotonic()
        self._cost = self._written - start

    def resume(
        self, stage: str, modules: dict[str, nn.Module], optimiser: Optimizer, average: Average | None = None
    ) -> Reached:
        """Restore an interrupted stage; a new one begins at epoch 0."""
        state = self._read(LAST)
        if state is None or state["stage"] != stage:
            return Reached()
        path = self.folder / LAST
        _load(modules, state["modules"], path)
        try:
            optimiser.load_state_dict(state["optimiser"])
        except ValueError as error:
            raise TrainingError(
                f"{path}: its optimiser has other groups of weights: {in_short(error)}; remove it to begin this stage "
                "again"
            ) from None
        if average is not None:
            _load(average.modules, state["average"], path)
            average.steps = state["averaged_steps"]
        _set_random_state(state["random"])
        return Reached(*(state[field] for field in Reached._fields))

    def restore_best(self, stage: str, modules: dict[str, nn.Module]) -> None:
        self._write_best()
        state = self._read(BEST)
        if state is not None and state["stage"] == stage:
            _load(modules, state["modules"], self.folder / BEST)

    def finish(self, stage: str, modules: dict[str, nn.Module]) -> None:
        self._write(f"{stage}.pt", {"modules": _states(modules), "random": _random_state()})

    def finished(self, stage: str, modules: dict[str, nn.Module]) -> bool:
        """Whether the stage is done; if so, its weights and the random state after it are restored."""
        state = self._read(f"{stage}.pt")
        if state is None:
            return False
        _load(modules, state["modules"], self.folder / f"{stage}.pt")
        _set_random_state(state["random"])
        return True

    def _write_best(self) -> None:
        if self._best is not None:
            self._write(BEST, self._best)
            self._best = None

    def _write(self, name: str, state: dict[str, Any]) -> None:
        self.write(self.folder / name, state)

    @staticmethod
    def write(path: Path, state: dict[str, Any]) -> None:
        """Atomic: a process killed while writing leaves the previous file."""
        if not ranks.first():
            return
        temporary = path.with_name(f".{path.name}")
        try:
            torch.save(state, temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(f"{path}: cannot be written: {in_short(error)}; what was there is kept") from None

    def _read(self, name: str) -> dict[str, Any] | None:
        return ranks.from_first(lambda: self._read_here(self.folder / name))

    @staticmethod
    def _read_here(path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and file errors share no base
            raise TrainingError(
                f"{path}: cannot be read: {in_short(error)}; remove it to begin this stage again"
            ) from None
        return state


def _copied(modules: dict[str, nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    """Their weights as they are now, in the CPU's memory."""
    return {
        name: {key: value.to("cpu", copy=True) for key, value in module.state_dict().items()}
        for name, module in modules.items()
    }


def _random_state() -> list[torch.Tensor]:
    """Of the CPU, then of every GPU."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]


def _set_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[1:])


def _states(modules: dict[str, nn.Module]) -> dict[str, Any]:
    return {name: module.state_dict() for name, module in modules.items()}


def _load(modules: dict[str, nn.Module], states: dict[str, Any], path: Path) -> None:
    try:
        for name, module in modules.items():
            module.load_state_dict(states[name])
    except (KeyError, RuntimeError) as error:
        raise TrainingError(f"{path}: of another network than this recipe's: {in_short(error)}") from None
