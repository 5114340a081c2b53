"""Mixed load, with clients that vanish at every point of a request. SOAK_S=30 makes it longer than the suite can."""

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from support import running

from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png

SECONDS = float(os.environ.get("SOAK_S", "6"))
FILES = [png(garment(kind)) for kind in GARMENTS]
LARGE = png(garment("bag").resize((1500, 1500)))
OPERATIONS = ("classify", "encode", "reconstruct", "anomaly?heatmap=true", "predict")


def good(address: str, done: Counter[int], seed: int, until: float) -> None:
    rng = random.Random(seed)
    with httpx.Client(base_url=address, timeout=30) as client:
        while time.monotonic() < until:
            kinds = [*FILES, LARGE] if rng.random() < 0.1 else FILES
            files = [("image", rng.choice(kinds)) for _ in range(rng.choice((1, 1, 1, 9)))]
            answer = client.post(f"/v1/{rng.choice(OPERATIONS)}", files=files)
            done[answer.status_code] += 1
            if answer.status_code == 200:
                assert len(answer.json()["results"]) == len(files)


def vanishing(address: str, seed: int, until: float) -> None:
    """Some say nothing, some half of what they have to say, some all of it, and none waits for an answer."""
    rng, where = random.Random(seed), urlsplit(address)
    while time.monotonic() < until:
        file = rng.choice([*FILES, LARGE])
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(file)}\r\n\r\n"
        whole = head.encode() + file
        with socket.create_connection((where.hostname, where.port)) as leaver:
            leaver.sendall(whole[: rng.choice((0, len(head) // 2, len(head), len(whole) // 2, len(whole)))])
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.01)
        time.sleep(0.005)


def load(address: str, seconds: float, seed: int) -> Counter[int]:
    done: Counter[int] = Counter()
    failures: list[BaseException] = []
    until = time.monotonic() + seconds

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    works: list[Callable[[], None]] = [
        *(lambda n=n: good(address, done, seed + n, until) for n in range(4)),
        *(lambda n=n: vanishing(address, seed + 100 + n, until) for n in range(3)),
    ]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return done


def queued(address: str) -> float:
    [family] = [
        family
        for family in text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
        if family.name == "graft_queue_images"
    ]
    return family.samples[0].value


def test_clients_that_vanish_harm_nobody_and_leave_nothing_behind(models: Path) -> None:
    settings = {"GRAFT_MODELS": str(models), "GRAFT_LOG_FORMAT": "json", "GRAFT_LOG_REQUESTS": "none"}
    with running(**settings) as (process, address, _):
        service = psutil.Process(process.pid)
        load(address, max(2.0, SECONDS / 4), seed=0)
        time.sleep(1)
        before, files = service.memory_info().rss, service.num_fds()
        done = load(address, SECONDS, seed=1)
        time.sleep(1)
        assert set(done) == {200}, done
        assert done[200] > 20 * SECONDS
        assert queued(address) == 0
        assert service.num_fds() <= files + 2
        grown = (service.memory_info().rss - before) / 1e6
        print(f"{done[200]:,} answered in {SECONDS:g} s; {grown:+.1f} MB")
        assert grown < 30
        process.terminate()
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert not [line for line in lines if line["level"] in ("error", "critical")]
