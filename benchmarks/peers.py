"""The servers: how each is started, pinned to its core, waited for, weighed and stopped."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.bundles import bundle
from benchmarks.home import ROOT, Skipped, environment
from benchmarks.integers import in_integers
from benchmarks.load import answered
from benchmarks.workloads import Request, Workload

SCRIPTS = Path(__file__).parent / "servers"
START_S = 60
STARTING = (404, 502, 503, 504)  # of a server that is not ready yet


@dataclass(frozen=True)
class Server:
    name: str
    title: str
    command: Callable[[int, Path], list[str]]  # port, bundle → what to start
    health: str = "/healthz"
    models: str | None = None  # where it tells of its models, which it tunes after it has started
    bundle: Callable[[str], Path] = bundle  # of a model's name, the folder that it serves


def _ours(script: str) -> Callable[[int, Path], list[str]]:
    return lambda port, folder: [sys.executable, str(SCRIPTS / script), str(port), str(folder)]


def _theirs(environment_name: str, script: str) -> Callable[[int, Path], list[str]]:
    return lambda port, folder: [
        str(environment(environment_name)), str(SCRIPTS / script), str(port), str(folder),
    ]  # fmt: skip


def _graft(port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "app", "--port", str(port), "--models", str(folder.parents[1])]


SERVERS = (
    Server("floor", "bare ASGI", _ours("floor.py"), "/"),
    Server("naive", "naive FastAPI", _ours("naive.py")),
    Server("granian", "naive FastAPI on granian", _theirs("granian", "on_granian.py")),
    Server("graft", "Graft", _graft, models="/v1/models"),
    Server("graft-int8", "Graft, INT8", _graft, models="/v1/models", bundle=in_integers),
    Server("litserve", "LitServe", _theirs("litserve", "lit.py"), "/health"),
    Server("bentoml", "BentoML", _theirs("bentoml", "bento.py"), "/livez"),
    Server("ray", "Ray Serve", _theirs("ray", "ray_serve.py"), "/-/healthz"),
    Server("mlserver", "MLServer", _theirs("mlserver", "ml_server.py"), "/v2/health/live"),
    Server("triton", "Triton through PyTriton", _theirs("triton", "py_triton.py"), "/v2/health/live"),
)
USUAL = ("floor", "naive", "granian", "graft", "graft-int8", "litserve")  # without PEERS=all


@dataclass(frozen=True)
class Running:
    server: Server
    port: int
    process: subprocess.Popen[bytes]
    startup_s: float  # from its start to its first right answer

    def memory_mb(self) -> float:
        """Resident, of all its processes."""
        return sum(resident_mb(pid) for pid in family(self.process.pid))

    def cpu_s(self) -> float:
        """Spent so far by all its processes that live."""
        return sum(_spent(pid) for pid in family(self.process.pid)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(server: Server, workload: Workload, first: Request, core: int) -> Iterator[Running]:
    """On a free port, pinned to `core` with all its children; ended afterwards, whatever happened."""
    folder = server.bundle(workload.model)
    port = free_port()
    command = server.command(port, folder)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=kept,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            _wait(process, port, first, start + START_S)
            started = Running(server, port, process, time.monotonic() - start)
            if server.models:
                _wait_until_tuned(f"http://127.0.0.1:{port}{server.models}", start + START_S)
            yield started
        except Skipped as skipped:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise Skipped(f"{server.title}: {skipped}: {lines[-1] if lines else 'it said nothing'}") from None
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], port: int, first: Request, until: float) -> None:
    while True:
        if process.poll() is not None:
            raise Skipped(f"it ended with status {process.returncode}")
        with contextlib.suppress(OSError):
            status, _ = answered(port, first)
            if status == 200:
                return
            if status not in STARTING:
                raise Skipped(f"it answers the first request with {status}")
        if time.monotonic() > until:
            raise Skipped(f"it did not answer within {START_S} s")
        time.sleep(0.005)


def _wait_until_tuned(models: str, until: float) -> None:
    """Longer than a measurement lasts, a service is as it is then."""

    def read(address: str) -> dict[str, Any]:
        with urlopen(address) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    for model in read(models)["models"]:
        while read(f"{models}/{model['name']}").get("tuning", {}).get("state") in ("waiting", "measuring"):
            if time.monotonic() > until:
                raise Skipped(f"{model['name']} was not tuned within {START_S} s")
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that descend from it: a server that forks may leave children behind."""
    members = family(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        found.append(each)
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                waiting += map(int, task.read_text().split())
    return found


def resident_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def _spent(pid: int) -> int:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # user and system, in ticks
    return 0


def core_busy_s(core: int) -> float:
    """How long the core has worked so far, for whomever; interrupts are left out, which the load itself causes."""
    [line] = [line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} ")]
    user, nice, system, _, _, _, _, steal = map(int, line.split()[1:9])
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
