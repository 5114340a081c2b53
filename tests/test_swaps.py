"""Versions that follow one another under full load. `make swaps` has 200 of them, the suite a few."""

import asyncio
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from load import Answer, Load, post
from support import ROOT, running

from app.bundle import Bundle, load
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png

SWAPS = int(os.environ.get("SWAPS", "10"))
EARLY = max(4, SWAPS // 10)
FILES = [png(garment(kind)) for kind in GARMENTS]
KINDS = [ROOT / "models/fashion-mnist/1", ROOT / "models/fashion-mnist-seed/1"]


@dataclass
class Judge:
    """Holds every answer to what the bundle that it names gives in this process."""

    expected: dict[str, list[dict[str, float]]]  # digest → of each file, the probabilities
    versions: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def hears(self, which: int, answer: Answer) -> None:
        if answer.status != 200:
            self.wrong.append(f"{answer.status} {answer.body!r}")
            return
        told = json.loads(answer.body)
        self.versions.add(told["model"]["version"])
        digest, [result] = told["model"]["digest"], told["results"]
        if digest != self.digest_of(told["model"]["version"]):
            self.wrong.append(f"version {told['model']['version']} is not {digest}")
        found, meant = result["probabilities"], self.expected[digest][which]
        if found.keys() != meant.keys() or max(abs(found[label] - meant[label]) for label in meant) > 1e-4:
            self.wrong.append(f"{GARMENTS[which]}: {result} of {told['model']}")

    def digest_of(self, version: int) -> str:
        return list(self.expected)[version % 2]


def probabilities(bundle: Bundle) -> list[dict[str, float]]:
    return [dict(bundle.classify(bundle.preprocess(file)[None])[0].ranked) for file in FILES]


def lay(models: Path, version: int) -> None:
    """Beside the last, in one step; and then the last is taken away."""
    home = models / "garments"
    shutil.copytree(KINDS[version % 2], home / ".next")
    (home / ".next").rename(home / str(version))


async def swapped(judge: Judge, version: int) -> None:
    end = time.monotonic() + 60
    while version not in judge.versions:
        assert time.monotonic() < end, f"version {version} never answered"
        assert not judge.wrong, judge.wrong[0]
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Held:
    megabytes: float
    threads: int
    descriptors: int


async def swap_under_load(models: Path, address: str, judge: Judge, service: psutil.Process) -> dict[int, Held]:
    """What the service holds, by the number of swaps until then."""
    load = Load(address, [post("/v1/classify", file, "image/png") for file in FILES], clients=32, hears=judge.hears)
    loading = asyncio.create_task(load.run())
    held: dict[int, Held] = {}
    await swapped(judge, 1)
    for version in range(2, SWAPS + 2):
        lay(models, version)
        await swapped(judge, version)
        shutil.rmtree(models / "garments" / str(version - 1))
        held[version - 1] = Held(service.memory_info().rss / 1e6, service.num_threads(), service.num_fds())
    load.stopped = True
    await loading
    assert load.lost == []
    assert load.refused == 0
    print(f"{load.answered:,} answered over {SWAPS} swaps")
    return held


def test_versions_that_follow_one_another_under_load_fail_no_request_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "garments").mkdir()
    lay(tmp_path, 1)
    judge = Judge({bundle.digest: probabilities(bundle) for bundle in map(load, KINDS)})
    settings = {"GRAFT_MODELS": str(tmp_path), "GRAFT_MODEL_CONTROL": "poll", "GRAFT_POLL_S": "0.1"}
    with running(60 + 5 * SWAPS, **settings) as (process, address, _):
        service = psutil.Process(process.pid)
        held = asyncio.run(swap_under_load(tmp_path, address, judge, service))
        assert judge.wrong == []
        assert judge.versions == set(range(1, SWAPS + 2))
        early, late = held[EARLY], held[SWAPS]
        print(*(f"after {swaps} swaps {held[swaps]}" for swaps in range(EARLY, SWAPS + 1, EARLY)), sep="\n")
        assert late.megabytes < early.megabytes + (
            10 if EARLY >= 20 else 30
        )  # the first few fill what is kept for good
        assert late.threads <= early.threads + 2
        assert late.descriptors <= early.descriptors + 4
        time.sleep(1)  # until the last look
        text = httpx.get(f"{address}/metrics").text
        assert text.count("graft_model_info{") == 1
        assert f'version="{SWAPS}"' not in text, "the last but one is gone"
