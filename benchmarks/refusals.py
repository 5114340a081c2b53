"""CPU that Graft spends on a plain request that is refused because its queue is full, beside one that it answers.

`python -m benchmarks.refusals`
"""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.bundles import bundle
from benchmarks.home import ROOT
from benchmarks.load import Answer
from benchmarks.peers import SCRIPTS, Running, Server, free_port
from benchmarks.serving import LOAD_CORE, SERVER_CORE
from benchmarks.workloads import WORKLOADS, Request

CONNECTIONS, ROUNDS, REPETITIONS = 8, 300, 5
STATUS = {"empty": 200, "full": 429}  # by how the queue is


def main() -> int:
    os.sched_setaffinity(0, {LOAD_CORE})
    print("| workload | answered, µs | refused, µs | share |\n| --- | --- | --- | --- |")
    for workload in (each for each in WORKLOADS if each.name in ("png", "png-raw")):
        requests = workload.requests("graft")
        costs: dict[str, list[float]] = {queue: [] for queue in STATUS}
        for _ in range(REPETITIONS):
            for queue, status in STATUS.items():
                with _serving(str(bundle(workload.model).parents[1]), queue) as server:
                    _ask(server.port, requests, ROUNDS // 4, status)
                    before = server.cpu_s()
                    _ask(server.port, requests, ROUNDS, status)
                    costs[queue].append(1e6 * (server.cpu_s() - before) / (ROUNDS * CONNECTIONS))
        answered, refused = (statistics.median(costs[queue]) for queue in STATUS)
        print(f"| {workload.name} | {answered:.0f} | {refused:.0f} | {refused / answered:.0%} |", flush=True)
    return 0


@contextlib.contextmanager
def _serving(models: str, queue: str) -> Iterator[Running]:
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / "full.py"), str(port), models, queue],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield Running(Server("full", "Graft", lambda *_: []), port, process, 0.0)
        finally:
            process.terminate()
            process.wait()


def _ask(port: int, requests: list[Request], rounds: int, status: int) -> None:
    """`rounds` times a request on each of the connections, all before the first answer is read."""
    with contextlib.ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(CONNECTIONS)
        ]
        for at in range(rounds):
            wire = requests[at % len(requests)].wire
            for connection in connections:
                connection.sendall(wire)
            for connection in connections:
                answer = Answer()
                while not answer.complete:
                    answer.feed(connection.recv(1 << 16))
                if answer.status != status:
                    raise SystemExit(f"{answer.status} in place of {status}: {answer.body[:200]!r}")


if __name__ == "__main__":
    sys.exit(main())
