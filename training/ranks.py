"""The processes that train together, each of a rank, where torchrun started several; a process alone is rank 0 of 1.

They do the same, each on its share of every batch and of what is read; rank 0 alone writes and speaks. What talks to
others here must be reached by all of them, in the same order.
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
_PATIENCE = timedelta(days=1)  # others may be reading a large folder; where one dies, torchrun ends the rest


def started() -> int:
    """How many processes torchrun started."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def first() -> bool:
    return started() == 1 or os.environ["RANK"] == "0"


def rank() -> int:
    return int(_torch().distributed.get_rank()) if _joined() else 0


def count() -> int:
    """How many train together now."""
    return int(_torch().distributed.get_world_size()) if _joined() else 1


def here() -> tuple[int, int]:
    """This process's place among those of its machine, and how many they are."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if _joined() else (0, 1)


@contextmanager
def together(stopped: Callable[[], None]) -> Iterator[None]:
    """Meet the others, and part at the end; at Ctrl-C rank 0 calls `stopped`, whatever it waits for, and all end."""
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
    """From here on each goes on alone."""
    if _joined():
        _torch().distributed.destroy_process_group()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, on all; or what it raises, or the others would tell of nothing but that it has gone."""
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
    """Imported here: it takes seconds, and commands that train nothing go without."""
    import torch
    import torch.distributed

    return torch


def _end_at_ctrl_c(stopped: Callable[[], None]) -> None:
    """At once, though it may wait for another rank in a call that no Python handler interrupts."""
    if not first():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return
    told, tells = os.pipe()
    os.set_blocking(tells, False)

    def wait() -> None:
        os.read(told, 1)
        stopped()
        os._exit(128 + signal.SIGINT)  # checkpoints are whole or not there, whenever this comes

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    threading.Thread(target=wait, name="graft-ctrl-c", daemon=True).start()
