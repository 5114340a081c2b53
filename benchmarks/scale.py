"""What a second core brings: two workers of the service against one, and two nodes of Ray against the local scorer.

    make scale                  # both; ONLY=workers, ONLY=score; the second needs `make ray`

The load of other processes stands beside every rate. Where a machine has other work, rates say little, and what a
CPU second brings says more: it does not fall where two do not get into each other's way.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil
from support import draw_folder, running

from benchmarks.home import RESULTS, ROOT, Skipped

RAY = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-ray") / "bin/python"
IMAGES = 64  # in a request: what the clients cost is little beside
CLIENTS = 16  # that whichever worker takes whichever connection, each has some
REPETITIONS = 3
SIZES = (8_192, 65_536)  # images to score, in whole blocks; the rate is of what the second has more, without the start
BOUNDARY = "graft"


class Clock:
    """Seconds of the wall, of the processes below `root`, and of everything on the machine."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._began = self._now()

    def spent(self) -> tuple[float, float, float]:
        wall, own, all_ = (now - then for now, then in zip(self._now(), self._began, strict=True))
        return wall, own, all_

    def _now(self) -> tuple[float, float, float]:
        own = 0.0
        for process in [self._root, *self._root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                own += times.user + times.system
        every = psutil.cpu_times()
        return time.monotonic(), own, sum(every) - every.idle - every.iowait


def body(files: list[Path]) -> bytes:
    parts = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
        + file.read_bytes()
        + b"\r\n"
        for file in files
    )
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def requested(port: int, data: bytes, seconds: float) -> int:
    """How many images were answered by the service in that time, over some connections."""
    counts, until = [0] * CLIENTS, time.monotonic() + seconds

    def ask(client: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < until:
            connection.request(
                "POST", "/v1/classify?top_k=1", data, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            )
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise Skipped(f"the service answers {answer.status}")
            counts[client] += IMAGES

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def workers(folder: Path) -> list[str]:
    data = body(sorted(folder.rglob("*.png"))[:IMAGES])
    alone, free, both = (1, 1), (1, 2), (2, 2)  # workers, cores that they may have
    rates: dict[tuple[int, int], list[float]] = {alone: [], free: [], both: []}
    per_cpu_second: dict[tuple[int, int], list[float]] = {alone: [], free: [], both: []}
    for _ in range(REPETITIONS):
        for count, cores in rates:
            settings = {"GRAFT_WORKERS": str(count), "GRAFT_THREADS": "1", "GRAFT_MODELS": str(ROOT / "models")}
            with running(300, **settings) as (process, address, _):
                if cores == 1:
                    keep_to_one_core(process.pid)
                port = int(address.rpartition(":")[2])
                requested(port, data, 2)  # warm
                clock, own = Clock(psutil.Process(process.pid)), time.process_time()
                images = requested(port, data, 5)
                wall, cpu, every = clock.spent()
                own = time.process_time() - own
            rates[count, cores].append(images / wall)
            per_cpu_second[count, cores].append(images / cpu)
            say(
                f"{count} workers, {cores} cores: {images / wall:,.0f} images/s, {images / cpu:,.0f} per CPU second, "
                f"had {cpu / wall:.2f} cores, clients {own / wall:.2f}, others {(every - cpu - own) / wall:.2f}"
            )
    return [
        row(f"{which}, 64 images a request", *({1: each[one], 2: each[both]} for each in (rates, per_cpu_second)))
        for which, one in (("a worker on one core, or two on two", alone), ("a worker on two cores, or two", free))
    ]


def keep_to_one_core(pid: int) -> None:
    """All threads that there are, and so those that they start."""
    core = {min(os.sched_getaffinity(0))}
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), core)


@contextlib.contextmanager
def nodes() -> Iterator[str]:
    """A cluster of two nodes, a core each."""
    if not RAY.exists():
        raise Skipped("no environment with Ray: `make ray` makes it")
    command = [RAY, ROOT / "tests/ray_cluster.py"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(120)


def scored(images: Path, out: Path, *more: str) -> float:
    """Seconds."""
    given = ["--models", str(ROOT / "models"), "--threads", "1", "--operation", "classify", "--out", str(out), *more]
    start = time.monotonic()
    subprocess.run(
        [RAY, "-m", "app", "score", images, *given],
        env=_environment(), cwd="/", check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - start


def score(folder: Path) -> list[str]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    per_cpu_second: dict[int, list[float]] = {1: [], 2: []}
    sets = [copies(folder, size) for size in SIZES]
    for repetition in range(REPETITIONS):
        for count in rates:
            spent, cpus = [], []
            for size, images in zip(SIZES, sets, strict=True):
                out = folder.parent / f"{repetition}-{count}-{size}.parquet"
                with nodes() if count == 2 else contextlib.nullcontext("") as address:
                    if count == 2:
                        scored(sets[0], folder.parent / "warm.parquet", "--ray", address)
                        shutil.rmtree(folder.parent / "warm.parquet")
                    clock = Clock(psutil.Process())
                    spent.append(scored(images, out, *(["--ray", address] if count == 2 else [])))
                    cpus.append(clock.spent()[2])  # of the whole machine: Ray's processes are nobody's children
            more = SIZES[1] - SIZES[0]
            rates[count].append(more / (spent[1] - spent[0]))
            per_cpu_second[count].append(more / (cpus[1] - cpus[0]))
            name = "Ray, two nodes" if count == 2 else "one process"
            say(f"{name}: {rates[count][-1]:,.0f} images/s, {per_cpu_second[count][-1]:,.0f} per CPU second; {spent} s")
    return [row("scorer: 1 process, or 2 nodes of Ray", rates, per_cpu_second)]


def copies(folder: Path, count: int) -> Path:
    """Hard links: what is read is the page cache, for all alike."""
    files, top = sorted(folder.rglob("*.png")), folder.parent / f"images-{count}"
    for start in range(0, count, len(files)):
        inside = top / f"{start:07}"
        inside.mkdir(parents=True)
        for number, file in enumerate(files[: count - start]):
            os.link(file, inside / f"{number}.png")
    return top


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def row(title: str, rates: dict[int, list[float]], per_cpu_second: dict[int, list[float]]) -> str:
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    medians = [f"{statistics.median(each[count]):,.0f}" for each in (rates, per_cpu_second) for count in (1, 2)]
    cells = [title, *medians, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    return f"| {' | '.join(cells)} |"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make scale")
    parser.add_argument("--only", choices=("workers", "score"))
    only = parser.parse_args().only
    lines = [
        "| | images/s: 1 | 2 | per CPU second: 1 | 2 | × | from – to |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = draw_folder(Path(temporary) / "drawn", 250, seed=1)
        for name, part in (("workers", workers), ("score", score)):
            if only in (None, name):
                try:
                    lines += part(folder)
                except Skipped as skipped:
                    say(f"{name}: skipped: {skipped}")
    print("\n".join(lines))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
