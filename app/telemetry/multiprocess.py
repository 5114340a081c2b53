"""Metrics of several workers: a folder that they share, and what is known of their processes.

prometheus_client keeps each worker's values in files in that folder; the worker that answers a scrape adds them up.
"""

import contextlib
import operator
import os
import re
import tempfile
from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.process_collector import ProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it when it is imported
_FILE_SIZES = {  # prometheus_client's file name → bytes
    "histogram": 1 << 18,
    "counter": 1 << 16,
    **{f"gauge_{mode}": 1 << 16 for mode in ("livemax", "livemin", "livesum")},
}
_MINIMUM = ("process_start_time_seconds", "process_max_fds")  # the lowest of all workers; all others are summed


@contextlib.contextmanager
def shared_folder() -> Iterator[dict[str, str]]:
    """For the parent of workers: the variables that let its workers share metrics. The folder is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="graft-metrics-") as folder:
        yield {FOLDER: folder}


def reserve_space(folder: str) -> None:
    """Allocates this process's files with space for about ten versions. They are memory-mapped: on a full disk, a later
    write would kill the process with SIGBUS. This raises OSError instead."""
    for kind, size in _FILE_SIZES.items():
        path = os.path.join(folder, f"{kind}_{os.getpid()}.db")
        try:
            with open(path, "ab") as file:
                if not file.tell():
                    file.write(bytes(size))
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None  # an error of write() has no path


def worker_gone(pid: int, folder: str) -> None:
    """For the parent, once for each worker that ended: removes its gauges and keeps its counts."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def live_workers(folder: str) -> list[int]:
    """The workers with files in the folder, for which `worker_gone` was not called yet."""
    matches = (re.fullmatch(r"gauge_livemax_(\d+)\.db", name) for name in os.listdir(folder))
    return [int(match[1]) for match in matches if match]


def process_metrics(pids: Iterable[int]) -> Iterator[Metric]:
    """The standard process_… metrics (memory, CPU, file descriptors, start), over all workers."""
    combined: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            before = combined.setdefault(family.name, family)
            if before is not family:
                combine = min if family.name in _MINIMUM else operator.add
                total = combine(before.samples[0].value, family.samples[0].value)
                before.samples = [before.samples[0]._replace(value=total)]
    yield from combined.values()
