"""A plain client alone, and beside eight that send the costliest pictures: its p99 must stay within five times.

    make attack SECONDS=30

One worker on one core; who asks runs on another, the attackers at a low priority, so that they cost the plain client
nothing on its own side. Requests under /v1 and /v2, as forms, raw bodies, JSON and tensors of bytes.
"""

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from hostile import DRAWN
from load import Answer, Load, post
from support import running

from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from benchmarks.home import ROOT
from benchmarks.load import percentile

ATTACKERS, MOST_SLOWER = 8, 5.0
WIDTH, HEIGHT = 8000, 7990  # nearly as many pixels as an image may have
PLAIN = [post("/v1/classify", png(garment(kind)), "image/png") for kind in GARMENTS]


def form(path: str, files: list[bytes]) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n'
    body = b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"
    return post(path, body, "multipart/form-data; boundary=x")


def hostile_requests(model: str, width: int = WIDTH, height: int = HEIGHT) -> list[bytes]:
    """Those that are refused and those that are let in; of few bytes all of them."""
    uniform, lossy = DRAWN["WebP RGBA, lossless"], DRAWN["WebP RGB"]
    whole = uniform(width, height)
    megapixel, quarter = uniform(1000, 1000), lossy(500, 500)
    text = base64.b64encode(whole).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [text, text]}
    return [
        form("/v1/classify", [whole] * 4),
        form("/v1/classify", [whole] * 2),
        form("/v1/predict", [megapixel] * 128),
        form("/v1/predict", [quarter] * 128),
        post("/v1/classify", whole, "image/webp"),
        post("/v1/encode", DRAWN["PNG RGBA, interlaced"](width, height), "image/png"),
        post("/v1/classify", json.dumps({"images": [text] * 2}).encode(), "application/json"),
        post(f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json"),
        post("/v1/classify", DRAWN["TIFF 16-bit RGBA, one tile"](2000, 2000), "image/tiff"),
        post("/v1/classify", DRAWN["BMP run-length"](2000, 2000), "image/bmp"),
    ]


@dataclass
class Heard:
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def on_answer(self, _: int, answer: Answer) -> None:
        self.seconds.append(answer.seconds)
        self.statuses[answer.status] += 1

    def p(self, percent: float) -> float:
        return 1000 * percentile(self.seconds, percent)


def attack(address: str, seconds: float, results: "multiprocessing.Queue[Counter[int]]", requests: list[bytes]) -> None:
    os.nice(10)
    heard = Heard()
    asyncio.run(_for(Load(address, requests, clients=ATTACKERS, kept=True, on_answer=heard.on_answer), seconds))
    results.put(heard.statuses)


async def _for(load: Load, seconds: float) -> None:
    task = asyncio.create_task(load.run())
    await asyncio.sleep(seconds)
    load.stopped = True
    await asyncio.wait([task], timeout=40)  # those that wait for a large picture
    task.cancel()


def plain(address: str, seconds: float) -> Heard:
    heard = Heard()
    load = Load(address, PLAIN, clients=1, on_answer=heard.on_answer)
    asyncio.run(_for(load, seconds))
    if load.lost or load.refused:
        heard.statuses[0] += len(load.lost) + load.refused
    return heard


def measured(seconds: float, requests: list[bytes], **settings: str) -> tuple[Heard, Heard, Counter[int]]:
    """(alone, beside the attackers, what they were answered)"""
    ours = os.sched_getaffinity(0)
    first, second = min(ours), max(ours)
    os.sched_setaffinity(0, {first})
    try:
        with running(2 * seconds + 120, GRAFT_LOG_REQUESTS="none", **settings) as (process, address, _):
            del process
            os.sched_setaffinity(0, {second})
            plain(address, 2)
            alone = plain(address, seconds / 2)
            results: multiprocessing.Queue[Counter[int]] = multiprocessing.Queue()
            attacker = multiprocessing.Process(target=attack, args=(address, seconds, results, requests))
            attacker.start()
            time.sleep(1)
            beside = plain(address, seconds)
            statuses = results.get(timeout=60)
            attacker.join()
            return alone, beside, statuses
    finally:
        os.sched_setaffinity(0, ours)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--only", type=int, nargs="*", help="which of the hostile requests")
    given = parser.parse_args()
    requests = hostile_requests("fashion-mnist")
    if given.only:
        requests = [requests[index] for index in given.only]
    alone, beside, statuses = measured(given.seconds, requests, GRAFT_MODELS=str(ROOT / "models"))
    times = beside.p(99) / alone.p(99)
    held = times <= MOST_SLOWER and set(beside.statuses) == {200}
    print(f"alone          p50 {alone.p(50):.2f} ms, p99 {alone.p(99):.2f} ms, {dict(alone.statuses)}")
    print(f"beside {ATTACKERS}       p50 {beside.p(50):.2f} ms, p99 {beside.p(99):.2f} ms, {dict(beside.statuses)}")
    print(f"they were told {dict(statuses)}")
    print(f"p99 is {times:.1f} times what it is alone; at most {MOST_SLOWER:g}: {'held' if held else 'NOT HELD'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
