"""The service in 512 MiB and on two CPUs, as deploy/ ships it, under the worst files that can be drawn: does it live?

    make confined SECONDS=60

In a control group, which needs root and Linux. Every format and mode, up to the pixels that are allowed there, of
one colour and so of few bytes, from eight clients; beside them one plain client, every one of whose requests is to be
answered. What came of it is printed; the exit status says whether it held, 77 that it cannot be measured here.
"""

import argparse
import asyncio
import math
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from hostile import DRAWN
from load import Load, post
from support import running

from benchmarks.attack import ATTACKERS, PLAIN, Heard, form
from benchmarks.home import ROOT, Skipped

MEMORY, CPUS = 512 << 20, 2
MOST_BYTES = 30_000_000
CGROUPS = Path("/sys/fs/cgroup")


def shipped() -> dict[str, str]:
    """The settings of the manifest, but for where things lie."""
    manifest = yaml.safe_load((ROOT / "deploy/kubernetes/deployment.yaml").read_text())
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": str(CPUS), "memory": f"{MEMORY >> 20}Mi"}
    return {each["name"]: each["value"] for each in container["env"]}


@contextmanager
def confined(root: Path = CGROUPS) -> Iterator[list[Path]]:
    """The folders of a new group with these limits, the memory controller's first."""
    name = f"graft-{os.getpid()}"
    if (root / "memory").is_dir():  # v1: one hierarchy per controller
        limits = {
            root / "memory" / name: {"memory.limit_in_bytes": str(MEMORY)},
            root / "cpu" / name: {"cpu.cfs_quota_us": str(CPUS * 100_000)},
        }
    else:
        limits = {root / name: {"memory.max": str(MEMORY), "cpu.max": f"{CPUS * 100_000} 100000"}}
    made: list[Path] = []
    try:
        if len(limits) == 1:
            (root / "cgroup.subtree_control").write_text("+memory +cpu")
        for folder, values in limits.items():
            folder.mkdir()
            made.append(folder)
            for file, value in values.items():
                with (folder / file).open("r+") as limit:  # a controller that is not enabled has no file
                    limit.write(value)
        if (swap := made[0] / "memory.swap.max").exists():
            swap.write_text("0")
    except OSError as error:
        _remove(made)
        raise Skipped(f"no control group can be made here: {error}") from None
    try:
        yield made
    finally:
        _remove(made)


def _remove(groups: list[Path]) -> None:
    for folder in groups:
        folder.rmdir()


def drawn(most_pixels: int) -> list[bytes]:
    """In several sizes, the largest first: square, and as wide and as high as may be."""
    found = []
    for name, draw in DRAWN.items():
        for share, across in ((1.0, 1.0), (0.5, 4.0), (0.05, 1.0)):
            high = math.isqrt(int(share * most_pixels / across))
            wide = int(share * most_pixels / high) if high else 0
            if name == "BMP run-length":
                wide, high = min(wide, 2000), min(high, 2000)
            data = draw(wide, high)
            if len(data) <= MOST_BYTES:
                found.append(data)
    return found


def requests(files: list[bytes]) -> list[bytes]:
    rng = random.Random(0)
    requested = [post("/v1/classify", file, "image/png") for file in files]
    small = [file for file in files if len(file) < 100_000]
    requested += [form("/v1/predict", rng.sample(small, rng.choice((2, 4, 30)))) for _ in range(30)]
    rng.shuffle(requested)
    return requested


def measured(seconds: float) -> tuple[Heard, Heard, dict[str, str], bool]:
    settings = shipped()
    requested = requests(drawn(int(settings["GRAFT_MAX_PIXELS"])))
    hostile, plain = Heard(), Heard()
    with confined() as groups:
        for folder in groups:  # the service is started in them; this process leaves again
            (folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            started = running(seconds + 180, GRAFT_MODELS=str(ROOT / "models"), **settings)
            process, address, _ = started.__enter__()
        finally:
            for folder in groups:
                (folder.parent / "cgroup.procs").write_text(str(os.getpid()))
        try:
            threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()

            async def both() -> None:
                loads = [
                    Load(address, PLAIN, clients=1, on_answer=plain.on_answer),
                    Load(address, requested, clients=ATTACKERS, on_answer=hostile.on_answer),
                ]
                tasks = [asyncio.create_task(each.run()) for each in loads]
                await asyncio.sleep(seconds)
                for each in loads:
                    each.stopped = True
                await asyncio.wait(tasks, timeout=45)
                for each, heard in zip(loads, (plain, hostile), strict=True):
                    heard.statuses[0] += len(each.lost) + each.refused

            asyncio.run(both())
            lives = process.poll() is None
            output = _told(groups[0])
        finally:
            started.__exit__(None, None, None)
    return plain, hostile, output, lives


def _told(group: Path) -> dict[str, str]:
    names = ("memory.max_usage_in_bytes", "memory.peak", "memory.oom_control", "memory.events", "memory.failcnt")
    return {name: " ".join((group / name).read_text().split()) for name in names if (group / name).exists()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    if not CGROUPS.is_dir() or os.geteuid():
        print("skipped: control groups need Linux and root", file=sys.stderr)
        return 77
    try:
        plain, hostile, output, lives = measured(given.seconds)
    except Skipped as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 77
    held = lives and +plain.statuses == Counter({200: plain.statuses[200]}) and plain.statuses[200] > 0
    print(f"plain    {dict(+plain.statuses)}, p50 {plain.p(50):.1f} ms, p99 {plain.p(99):.1f} ms")
    print(f"hostile  {dict(+hostile.statuses)}")
    print(f"memory   {output} of {MEMORY:,}")
    print(f"the process {'lives' if lives else 'DIED'}: {'held' if held else 'NOT HELD'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
