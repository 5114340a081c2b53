"""Versions that follow one another under full load. `make swaps` has 200 of them, the suite a few."""

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from load import Answer, Load, post
from support import ROOT, running

from app.bundle import Bundle, load
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png

SWAPS = int(os.environ.get("SWAPS", "10"))
Swap = Callable[[Path, httpx.AsyncClient, "Judge", int], Awaitable[None]]
EARLY = max(4, SWAPS // 10)
FILES = [png(garment(kind)) for kind in GARMENTS]
KINDS = [ROOT / "models/fashion-mnist/1", ROOT / "models/fashion-mnist-seed/1"]


@dataclass
class Judge:
    """Holds every answer to what the bundle that it names gives in this process."""

    expected: dict[str, list[dict[str, float]]]  # digest → of each file, the probabilities
    latest: int = 0  # version that answered
    wrong: list[str] = field(default_factory=list)

    def on_answer(self, which: int, answer: Answer) -> None:
        if answer.status != 200:
            self.wrong.append(f"{answer.status} {answer.body!r}")
            return
        output = json.loads(answer.body)
        self.latest = output["model"]["version"]
        digest, [result] = output["model"]["digest"], output["results"]
        if digest != self.digest_of(output["model"]["version"]):
            self.wrong.append(f"version {output['model']['version']} is not {digest}")
        found, meant = result["probabilities"], self.expected[digest][which]
        if found.keys() != meant.keys() or max(abs(found[label] - meant[label]) for label in meant) > 1e-4:
            self.wrong.append(f"{GARMENTS[which]}: {result} of {output['model']}")

    def digest_of(self, version: int) -> str:
        return list(self.expected)[version % 2]


def probabilities(bundle: Bundle) -> list[dict[str, float]]:
    return [dict(bundle.classify(bundle.preprocess(file)[None])[0].ranked) for file in FILES]


def lay(models: Path, version: int) -> None:
    """Beside the last, in one step; and then the last is taken away."""
    home = models / "garments"
    shutil.copytree(KINDS[version % 2], home / ".next")
    (home / ".next").rename(home / str(version))


async def by_folder(models: Path, _: httpx.AsyncClient, judge: Judge, turn: int) -> None:
    """A number of its own for each; the one before is taken away once this one answers."""
    lay(models, turn + 1)
    await answers(judge, turn + 1)
    shutil.rmtree(models / "garments" / str(turn))


async def by_call(_: Path, client: httpx.AsyncClient, judge: Judge, turn: int) -> None:
    """The two there are in turn: every other time it is back to the first."""
    version = 2 - turn % 2
    body = {"parameters": {"version": str(version)}}
    (await client.post("/v2/repository/models/garments/load", json=body)).raise_for_status()
    await answers(judge, version)


async def answers(judge: Judge, version: int) -> None:
    end = time.monotonic() + 60
    while judge.latest != version:
        assert time.monotonic() < end, f"version {version} never answered"
        assert not judge.wrong, judge.wrong[0]
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Held:
    megabytes: float
    threads: int
    descriptors: int


async def swap_under_load(
    models: Path, address: str, judge: Judge, service: psutil.Process, swap: Swap
) -> dict[int, Held]:
    """What the service holds, by the number of swaps until then."""
    load = Load(
        address, [post("/v1/classify", file, "image/png") for file in FILES], clients=32, on_answer=judge.on_answer
    )
    loading = asyncio.create_task(load.run())
    held: dict[int, Held] = {}
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        for turn in range(1, SWAPS + 1):
            await swap(models, client, judge, turn)
            held[turn] = Held(service.memory_info().rss / 1e6, service.num_threads(), service.num_fds())
    load.stopped = True
    await loading
    assert load.lost == []
    assert load.refused == 0
    print(f"{load.answered:,} answered over {SWAPS} swaps")
    return held


@pytest.mark.parametrize(("control", "swap", "first"), [("poll", by_folder, (1,)), ("explicit", by_call, (1, 2))])
def test_versions_that_follow_one_another_under_load_fail_no_request_and_leave_nothing_behind(
    tmp_path: Path, control: str, swap: Swap, first: tuple[int, ...]
) -> None:
    (tmp_path / "garments").mkdir()
    for version in first:
        lay(tmp_path, version)
    judge = Judge({bundle.digest: probabilities(bundle) for bundle in map(load, KINDS)})
    settings = {"GRAFT_MODELS": str(tmp_path), "GRAFT_MODEL_CONTROL": control, "GRAFT_POLL_S": "0.1"}
    with running(60 + 5 * SWAPS, **settings) as (process, address, _):
        service = psutil.Process(process.pid)
        held = asyncio.run(swap_under_load(tmp_path, address, judge, service, swap))
        assert judge.wrong == []
        early, late = held[EARLY], held[SWAPS]
        print(*(f"after {swaps} swaps {held[swaps]}" for swaps in range(EARLY, SWAPS + 1, EARLY)), sep="\n")
        allowed = 10 if EARLY >= 20 else 30  # the first few fill what is kept for good
        assert late.megabytes < early.megabytes + allowed
        assert late.threads <= early.threads + 2
        assert late.descriptors <= early.descriptors + 4
        time.sleep(1)  # until the last look
        requested = httpx.post(f"{address}/v1/classify", content=FILES[0], headers={"content-type": "image/png"})
        answers_now = requested.json()["model"][
            "version"
        ]  # of those asked last, one that began earlier may have ended last
        text = httpx.get(f"{address}/metrics").text
        assert text.count("graft_model_info{") == 1
        assert set(re.findall(r'graft_requests_total{.*version="(\d+)"', text)) == {str(answers_now)}
