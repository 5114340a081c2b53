"""A run's journal: metrics.jsonl, and TensorBoard's events beside it where that is installed."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from training import jsonl, ranks
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

    def rewind(self, stage: str, epochs: int) -> None:
        """Drop the lines of a stage that a killed run wrote after its last checkpoint: those epochs come again."""
        lines = jsonl.read(self.path)
        kept = [line for line in lines if line.get("stage") != stage or line.get("epoch", 0) <= epochs]
        if not ranks.first() or len(kept) == len(lines):
            return
        temporary = self.path.with_name(f".{self.path.name}")
        try:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(temporary, self.path)
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written: {error.strerror}; what was there is kept") from None


def _board(folder: Path) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
