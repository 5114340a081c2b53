"""One workload through every server, in turn, again and again: the answers first, then the clock."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.bundles import NETWORKS
from benchmarks.home import Skipped
from benchmarks.peers import Running, Server, core_busy_s, running
from benchmarks.raw import rates
from benchmarks.workloads import Request, Workload

SERVER_CORE, LOAD_CORE = 0, 1
CHECKED = 16  # answers that are compared before the clock runs
BURST = 128  # connections at once
BURSTS = 15
DISTURBED = 0.05  # share of the server's core that others took, above which it is said


@dataclass(frozen=True)
class Plan:
    servers: Sequence[Server]
    seconds: float = 3
    repetitions: int = 3
    concurrency: Sequence[int] = ()  # in place of the workload's own


@dataclass
class Outcome:
    """Of one workload, as it is saved."""

    workload: str
    title: str
    images: int  # in one request
    rounds: list[dict[str, Any]] = field(default_factory=list)  # repetition, server, load, and what `load.Seen` has
    starts: list[dict[str, Any]] = field(default_factory=list)  # repetition, server, startup_s, memory_mb
    raw: list[dict[str, float]] = field(default_factory=list)  # images per second by batch, once a repetition
    skipped: dict[str, str] = field(default_factory=dict)  # server → why


def measure(workload: Workload, plan: Plan, with_raw: bool = False) -> Outcome:
    os.sched_setaffinity(0, {LOAD_CORE})  # this process, and so its probe and its bursts
    outcome = Outcome(workload.name, workload.title, workload.images)
    with tempfile.TemporaryDirectory() as folder:
        requested = {}
        for server in plan.servers:
            if server.name in workload.paths:
                requested[server.name] = workload.requests(server.name)
                load.write_requests(Path(folder) / server.name, requested[server.name])
            else:
                outcome.skipped[server.name] = "does not do this"
        for repetition in range(plan.repetitions):
            for server in plan.servers:
                if server.name in outcome.skipped:
                    continue
                try:
                    with running(server, workload, requested[server.name][0], SERVER_CORE) as started:
                        _round(started, workload, plan, requested[server.name], Path(folder), repetition, outcome)
                except Skipped as skipped:
                    outcome.skipped[server.name] = str(skipped)
                    print(f"  {server.title}: skipped: {skipped}", file=sys.stderr)
            if with_raw:
                seconds = plan.seconds / (1 if workload.model in NETWORKS else 6)
                outcome.raw.append({str(b): r for b, r in rates(workload.model, seconds, SERVER_CORE).items()})
    return outcome


def _round(
    started: Running,
    workload: Workload,
    plan: Plan,
    requests: list[Request],
    folder: Path,
    repetition: int,
    outcome: Outcome,
) -> None:
    server, seconds = started.server, plan.seconds * workload.seconds
    _check(started.port, workload, server, requests)
    file = folder / server.name
    load.steady(started.port, file, 8, 1, LOAD_CORE)  # warm
    for connections in plan.concurrency or workload.concurrency:
        wall, busy, own = time.monotonic(), core_busy_s(SERVER_CORE), started.cpu_s()
        with load.Probe(started.port, server.health) as probe:
            seen = load.steady(started.port, file, connections, seconds, LOAD_CORE)
        wall, busy, own = time.monotonic() - wall, core_busy_s(SERVER_CORE) - busy, started.cpu_s() - own
        others = max(0.0, (busy - own) / wall)  # what else ran on the server's core
        output = {
            "load": f"c={connections}",
            **asdict(seen),
            "health_p99_ms": load.percentile(probe.times_ms, 99),
            "cpu_us": 1e6 * own / max(1, seen.requests),
            "others": others,
        }
        outcome.rounds.append({"repetition": repetition, "server": server.name, **output})
        disturbed = f"; {others:.0%} of its core went to others" if others > DISTURBED else ""
        print(
            f"  {server.title}, c={connections}: {seen.per_second:,.1f}/s, p99 {seen.p99_ms:.2f} ms{disturbed}",
            file=sys.stderr,
        )
    if workload.burst:
        seen = load.burst(started.port, requests[:BURST], BURSTS)
        outcome.rounds.append({"repetition": repetition, "server": server.name, "load": "burst", **asdict(seen)})
        print(f"  {server.title}, burst: p99 {seen.p99_ms:.1f} ms", file=sys.stderr)
    outcome.starts.append(
        {
            "repetition": repetition,
            "server": server.name,
            "startup_s": started.startup_s,
            "memory_mb": started.memory_mb(),
        }
    )


def _check(port: int, workload: Workload, server: Server, requests: list[Request]) -> None:
    step = max(1, len(requests) // CHECKED)
    for index in range(0, len(requests), step):
        status, answer = load.answered(port, requests[index])
        wrong = f"status {status}"
        if status == 200:
            wrong = workload.wrong(server.name, workload.files[index], answer, server.bundle(workload.model))
        if wrong:
            raise Skipped(f"{server.title} answers wrongly: {wrong}")
