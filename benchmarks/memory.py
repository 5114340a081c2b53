"""Graft's resident memory while it answers a million requests of one PNG, c=32."""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.peers import SERVERS, running
from benchmarks.serving import LOAD_CORE, SERVER_CORE
from benchmarks.workloads import WORKLOADS

STEP_S = 5


def measure(requests: int) -> dict[str, Any]:
    os.sched_setaffinity(0, {LOAD_CORE})
    workload = next(each for each in WORKLOADS if each.name == "png")
    server = next(each for each in SERVERS if each.name == "graft")
    requested = workload.requests(server.name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requests"
        load.write_requests(file, requested)
        with running(server, workload, requested[0], SERVER_CORE) as started:
            samples, done, errors, start = [(0, started.memory_mb())], 0, 0, time.monotonic()
            while done < requests:
                seen = load.steady(started.port, file, 32, STEP_S, LOAD_CORE)
                done, errors = done + seen.requests, errors + seen.errors
                samples.append((done, started.memory_mb()))
                print(f"  {done:,} requests: {samples[-1][1]:.1f} MB", file=sys.stderr)
    return {
        "requests": done,
        "errors": errors,
        "seconds": time.monotonic() - start,
        "samples": samples,
        "after_mb": samples[-1][1],
        "growth_mb": growth(samples),
    }


def growth(samples: list[tuple[int, float]]) -> float:
    """From the sample nearest to half of all requests to the last one."""
    half = samples[-1][0] / 2
    return samples[-1][1] - min(samples, key=lambda sample: abs(sample[0] - half))[1]
