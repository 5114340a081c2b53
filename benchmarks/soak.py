"""The service for minutes on end, under good, bad, hostile and vanishing clients, its model swapped every few seconds.

    make soak MINUTES=10

At the end a table; it, every sample and a plot are in .bench/results: soak.md, soak.json, soak.svg. The exit status
says whether it held. Clients, and what answers are held to, are those of the tests.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from load import Answer, Load, post
from support import running
from test_soak import LARGE, vanishing
from test_swaps import FILES, KINDS, Judge, by_folder, lay, probabilities

from app.bundle import load
from benchmarks.attack import hostile_requests
from benchmarks.home import RESULTS, machine
from benchmarks.load import percentile
from training.report.charts import HEIGHT, WIDTH, Series, lines

SWAP_S, LOOK_S, WINDOW_S = 5.0, 2.0, 30.0  # between swaps, between looks at the process, over which a p99 is told
HOSTILE = {200, 413, 429, 504}  # what those pictures may be answered: done, refused, or late
MOST_SLOPE, MOST_SLOWER = 0.5, 2.0  # MB a minute where noise is less; × the p99 at the start


def _infer(model: str, **changes: object) -> bytes:
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [7] * 784} | changes
    return post(f"/v2/models/{model}/infer", json.dumps({"inputs": [image]}).encode(), "application/json")


GOOD = [
    *(post(f"/v1/{what}", file, "image/png") for what in ("encode", "predict") for file in FILES),
    post("/v1/anomaly?heatmap=true", FILES[0], "image/png"),
    post("/v1/reconstruct", LARGE, "image/png"),
    _infer("garments"),
]
BAD = [
    (post("/v1/classify", b"no image", "image/png"), 415),
    (post("/v1/classify", FILES[0][:60], "image/png"), 422),
    (post("/v1/classify", b"{}", "application/json"), 400),
    (post("/v1/classify?model=nobody", FILES[0], "image/png"), 404),
    (_infer("garments", shape=[2, 28, 28, 1]), 400),
    (_infer("garments", datatype="FP64"), 400),
    (_infer("nobody"), 404),
]


@dataclass(frozen=True)
class Held:
    at_s: float
    megabytes: float
    descriptors: int
    threads: int


@dataclass
class Soak:
    began: float = field(default_factory=time.monotonic)
    good: int = 0
    bad: Counter[int] = field(default_factory=Counter)
    hostile: Counter[int] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    waits: list[tuple[float, float]] = field(default_factory=list)  # of good requests: when answered, seconds
    held: list[Held] = field(default_factory=list)
    swaps: int = 0
    warnings: list[str] = field(default_factory=list)  # lines of the log

    @property
    def at_s(self) -> float:
        return time.monotonic() - self.began

    def on_good_answer(self, _: int, answer: Answer) -> None:
        if answer.status == 200:
            self.good += 1
            self.waits.append((self.at_s, answer.seconds))
        else:
            self.unexpected[f"{answer.status} to a good request"] += 1

    def on_hostile_answer(self, _: int, answer: Answer) -> None:
        if answer.status in HOSTILE:
            self.hostile[answer.status] += 1
        else:
            self.unexpected[f"{answer.status} to a hostile request"] += 1

    def on_bad_answer(self, which: int, answer: Answer) -> None:
        meant = BAD[which][1]
        if answer.status == meant:
            self.bad[meant] += 1
        else:
            self.unexpected[f"{answer.status} to a bad request, {meant} was due"] += 1

    # --- what came of it ---------------------------------------------------------------------------------------

    def p99s(self) -> list[tuple[float, float]]:
        """(minute, ms) of every window."""
        windows: dict[int, list[float]] = {}
        for at, seconds in self.waits:
            windows.setdefault(int(at / WINDOW_S), []).append(seconds)
        return [((n + 0.5) * WINDOW_S / 60, 1000 * percentile(each, 99)) for n, each in sorted(windows.items())]

    def slope(self) -> tuple[float, float]:
        """(MB a minute, its standard error) of the memory, over the second half: the first fills what is kept."""
        later = [each for each in self.held if each.at_s >= self.held[-1].at_s / 2]
        minutes, megabytes = (np.array([getattr(each, name) for each in later]) for name in ("at_s", "megabytes"))
        minutes = minutes / 60
        steepness, start = np.polyfit(minutes, megabytes, 1)
        off = megabytes - steepness * minutes - start
        spread = np.sqrt((off**2).sum() / (len(off) - 2) / ((minutes - minutes.mean()) ** 2).sum())
        return float(steepness), float(spread)

    def middle(self, start: float, end: float) -> Held:
        """Medians over these shares of the time: a single look meets more or fewer connections by chance."""
        part = self.held[int(start * len(self.held)) : int(end * len(self.held))]
        at_s, megabytes, descriptors, threads = (
            statistics.median(values) for values in zip(*map(astuple, part), strict=True)
        )
        return Held(at_s, megabytes, round(descriptors), round(threads))

    def table(self) -> list[tuple[str, str, bool]]:
        """(what, value, whether it is as it should be)"""
        p99s, (slope, error) = self.p99s(), self.slope()
        first, last = p99s[0][1], p99s[-2][1] if len(p99s) > 2 else p99s[-1][1]  # the last window may be a short one
        early, late = self.middle(0.1, 0.5), self.middle(0.5, 1.0)
        bad = ", ".join(f"{count:,} × {status}" for status, count in sorted(self.bad.items()))
        hostile = ", ".join(f"{count:,} × {status}" for status, count in sorted(self.hostile.items()))
        unexpected = "; ".join(f"{count:,} × {what}" for what, count in self.unexpected.items())
        return [
            ("minutes", f"{self.held[-1].at_s / 60:.1f}", True),
            ("good requests answered", f"{self.good:,}", self.good > 0),
            ("bad requests refused as is due", bad, bool(self.bad)),
            ("hostile pictures", hostile, bool(self.hostile)),
            ("anything else", unexpected or "0", not self.unexpected),
            ("swaps", f"{self.swaps}", self.swaps > 0),
            ("memory, MB", f"{early.megabytes:.0f} → {late.megabytes:.0f}", True),
            (
                "memory, MB a minute over the second half",
                f"{slope:+.2f} ± {error:.2f}",
                slope <= max(MOST_SLOPE, 3 * error),
            ),
            ("descriptors", f"{early.descriptors} → {late.descriptors}", late.descriptors <= early.descriptors + 16),
            ("threads", f"{early.threads} → {late.threads}", late.threads <= early.threads + 4),
            ("p99, ms", f"{first:.1f} → {last:.1f}", last <= MOST_SLOWER * first),
            ("warnings in the log", f"{len(self.warnings)}", not self.warnings),
        ]

    def plot(self) -> str:
        minutes = [each.at_s / 60 for each in self.held]
        p99s = self.p99s()
        charts = [
            ("memory, MB", [Series("", minutes, [each.megabytes for each in self.held])]),
            ("p99, ms", [Series("", [at for at, _ in p99s], [each for _, each in p99s])]),
            ("descriptors", [Series("", minutes, [each.descriptors for each in self.held])]),
            ("threads", [Series("", minutes, [each.threads for each in self.held])]),
        ]
        parts = []
        for index, (up, series) in enumerate(charts):
            drawn = lines(up, series, "minutes", up)
            inner = drawn[drawn.index("<svg ") + len("<svg ") : drawn.index("</svg>")]
            parts.append(f'<svg y="{index * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" {inner}</svg>')
        whole = len(charts) * HEIGHT
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" width="{WIDTH}" height="{whole}" '
            f'font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
        )


async def soaked(soak: Soak, address: str, models: Path, service: psutil.Process, seconds: float) -> None:
    judge = Judge({bundle.digest: probabilities(bundle) for bundle in map(load, KINDS)})

    def on_judged_answer(which: int, answer: Answer) -> None:
        soak.on_good_answer(which, answer)
        judge.on_answer(which, answer)

    loads = [
        Load(
            address, [post("/v1/classify", file, "image/png") for file in FILES], clients=8, on_answer=on_judged_answer
        ),
        Load(address, GOOD, clients=4, on_answer=soak.on_good_answer),
        Load(address, hostile_requests("garments"), clients=2, on_answer=soak.on_hostile_answer),
        Load(address, [request for request, _ in BAD], clients=2, kept=False, on_answer=soak.on_bad_answer),
    ]
    tasks = [asyncio.create_task(each.run()) for each in loads]
    tasks.append(asyncio.create_task(_swap(soak, models, address, judge, seconds)))
    until = soak.began + seconds
    with ThreadPoolExecutor(2) as pool:
        leaving = [asyncio.get_running_loop().run_in_executor(pool, vanishing, address, n, until) for n in range(2)]
        while soak.at_s < seconds:
            await asyncio.sleep(LOOK_S)
            memory = service.memory_info().rss / 1e6
            soak.held.append(Held(soak.at_s, memory, service.num_fds(), service.num_threads()))
        for each in loads:
            each.stopped = True
        await asyncio.gather(*tasks, *leaving)
    for each in loads:
        soak.unexpected.update(["a connection that was refused"] * each.refused + each.lost)
    soak.unexpected.update(judge.wrong)


async def _swap(soak: Soak, models: Path, address: str, judge: Judge, seconds: float) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        while soak.at_s < seconds - 2 * SWAP_S:
            await asyncio.sleep(SWAP_S)
            await by_folder(models, client, judge, soak.swaps + 1)
            soak.swaps += 1


def measured(minutes: float) -> Soak:
    soak = Soak()

    def listen(log: Sequence[str]) -> None:  # for as long as there is one, or a full pipe would hold the service
        soak.warnings += [line for line in log if " INFO " not in line]

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        (models / "garments").mkdir()
        lay(models, 1)
        settings = {"GRAFT_MODELS": folder, "GRAFT_MODEL_CONTROL": "poll", "GRAFT_POLL_S": "0.5"}
        with running(60 * minutes + 120, GRAFT_LOG_REQUESTS="none", **settings) as (process, address, _):
            reader = threading.Thread(target=listen, args=(process.stderr,))
            reader.start()
            soak.began = time.monotonic()
            asyncio.run(soaked(soak, address, models, psutil.Process(process.pid), 60 * minutes))
            process.terminate()
            reader.join()
    return soak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of soak.md, soak.json and soak.svg")
    arguments = parser.parse_args()
    soak = measured(arguments.minutes)
    rows = soak.table()
    held = [f"| {what} | {value} | {'' if good else '**no**'} |" for what, value, good in rows]
    output = "\n".join(["| what | value | as it should be? |", "| --- | --- | --- |", *held])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "soak.md").write_text(f"{machine()}\n\n{output}\n")
    (arguments.out / "soak.svg").write_text(soak.plot())
    every = {"machine": machine(), "table": rows, "held": [asdict(each) for each in soak.held], "p99_ms": soak.p99s()}
    (arguments.out / "soak.json").write_text(json.dumps(every | {"warnings": soak.warnings}, indent=1))
    print(output)
    return 0 if all(good for *_, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
