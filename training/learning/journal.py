"""A run's journal: metrics.jsonl, and TensorBoard's events beside it where that is installed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from training import ranks
from training.errors import TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

JOURNAL_FILE = "metrics.jsonl"


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
