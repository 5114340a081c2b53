"""The processes that torchrun started to train together, numbered by rank. A single process is rank 0 of 1.

All ranks run the same code, each on its share of every batch and of the files; only rank 0 writes and prints. Functions
here that communicate must be called by all ranks, in the same order.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from training.errors import TrainingError

T = TypeVar("T")
_PATIENCE = timedelta(days=1)  # another rank may be reading a large folder; if one dies, torchrun ends the others


def started() -> int:
    """How many processes torchrun started."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def first() -> bool:
    return started() == 1 or os.environ["RANK"] == "0"


def rank() -> int:
    return int(_torch().distributed.get_rank()) if _joined() else 0


def count() -> int:
    """How many processes train together now."""
    return int(_torch().distributed.get_world_size()) if _joined() else 1


def here() -> tuple[int, int]:
    """This process's rank on its machine, and the number of ranks there."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if _joined() else (0, 1)


@contextmanager
def together(stopped: Callable[[], None]) -> Iterator[None]:
    """Joins the process group, and leaves it at the end. At Ctrl-C rank 0 calls `stopped`, and all end."""
    if started() == 1:
        yield
        return
    torch = _torch()
    place, places = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if gpus:
        if places > gpus:
            raise TrainingError(f"{places} processes for {gpus} GPUs: at most one each, --nproc_per_node {gpus}")
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
    _end_at_ctrl_c(stopped)
    try:
        yield
    finally:
        part()


def part() -> None:
    """Leaves the process group: from here on each process works alone."""
    if _joined():
        _torch().distributed.destroy_process_group()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def from_first(make: Callable[[], T]) -> T:
    """The value that `make` gives on rank 0. If it raises, all ranks raise the same error."""
    if count() == 1:
        return make()
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if first():
        try:
            outcome = [(make(), None)]
        except Exception as error:
            outcome = [(None, error)]
    _torch().distributed.broadcast_object_list(outcome)
    [(made, failed)] = outcome
    if failed is not None:
        raise failed
    return made  # type: ignore[return-value]


def of_all(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    _torch().distributed.all_gather_object(found, value)
    return found


def _joined() -> bool:
    return sys.modules.get("torch") is not None and _torch().distributed.is_initialized()


def _torch() -> Any:
    """Imported here, because it takes seconds, and not all commands need it."""
    import torch
    import torch.distributed

    return torch


def _end_at_ctrl_c(stopped: Callable[[], None]) -> None:
    """At once: this rank may be waiting for another in a call that no Python handler interrupts."""
    if not first():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        os.read(reader, 1)
        stopped()
        os._exit(128 + signal.SIGINT)  # checkpoints are written atomically

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=wait, name="graft-ctrl-c", daemon=True).start()
