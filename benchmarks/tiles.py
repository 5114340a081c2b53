"""Pictures in tiles, drawn by code: what 12 megapixels cost the whole service on one core, and whether small defects
are found that a picture scaled to the input has lost.
"""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from app.bundle import Bundle, load
from app.bundle.store import versions
from benchmarks.bars import Bar
from benchmarks.home import ROOT
from benchmarks.peers import family, free_port, resident_mb
from training import recipe, run

TILE = 512
LARGE = (3000, 4000)  # height, width
LEARNT = (900, 1200)
SOUND, JUDGED = 24, 12
SPOT = 12  # pixels across
SECONDS, MEGABYTES = (8, 3), (512, 512)  # bar and goal
FOUND = (0.95, 1.0)
RUNS = 3
START_S, ANSWER_S = 120, 300


def tiles(out: Path) -> Iterator[Bar]:
    """Of the recipe inspect with and without tiles."""
    data = _draw(out / "textures")
    tiled = _bundle(data, "tiles", [f"input.tiles={TILE}"], out)
    whole = _bundle(data, "whole", ["input.height=224", "input.width=224"], out)
    found = {name: _auroc(bundle) for name, bundle in (("tiles", tiled), ("whole", whole))}
    print(f"        spots of {SPOT} pixels, scaled to 224 × 224: image AUROC {found['whole']:.4f}", flush=True)
    yield Bar(f"spots of {SPOT} pixels in tiles, image AUROC", found["tiles"], *FOUND)
    seconds, cpu, megabytes = _served(out / "models-tiles", "tiles")
    print(f"        of which the service computed {cpu:.1f} s", flush=True)
    what = f"a JPEG of {LARGE[1]} × {LARGE[0]} in tiles of {TILE}, one core, score, map and regions"
    yield Bar(f"{what}, seconds", seconds, *SECONDS, higher_is_better=False)
    yield Bar("the same, memory of the whole service, MB", megabytes, *MEGABYTES, higher_is_better=False)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: a surface of coarse and fine noise."""
    level = np.full((height, width), 128, np.float32)
    for step, strength in ((16, 18), (4, 14), (1, 6)):
        noise = rng.normal(size=(height // step + 1, width // step + 1)).astype(np.float32)
        level += strength * np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(level[..., None] * (1, 0.9, 0.8), 0, 255).astype(np.uint8)


def _draw(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SPOT, :SPOT] - (SPOT - 1) / 2
    round_ = np.hypot(y, x) <= SPOT / 2
    for kind, count in (("train/good", SOUND), ("test/good", JUDGED), ("test/spot", JUDGED)):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            pixels = texture(rng, *LEARNT)
            if kind == "test/spot":
                top, left = (int(rng.integers(0, side - SPOT)) for side in LEARNT)
                part = pixels[top : top + SPOT, left : left + SPOT]
                part[round_] //= 2
            Image.fromarray(pixels).save(folder / kind / f"{number:02}.png")
    return folder


def _bundle(data: Path, name: str, settings: list[str], out: Path) -> Bundle:
    """Made on first use."""
    models = out / f"models-{name}"  # what is timed is served alone
    if not (models / name).is_dir():
        chosen = recipe.load("inspect", [f"source={data}", f"target={data}", f"name={name}", *settings])
        run.run(chosen, models, out / f"run-{name}")
    return load((models / name / str(versions(models / name)[-1])).resolve(), threads=1)


def _auroc(bundle: Bundle) -> float:
    return next(metric.value for metric in bundle.manifest.metrics if metric.name == "image_auroc")


def _served(models: Path, name: str) -> tuple[float, float, float]:
    """(median seconds of a request, processor seconds of the service for one, most MB with all its processes)."""
    buffer = io.BytesIO()
    Image.fromarray(texture(np.random.default_rng(1), *LARGE)).save(buffer, "JPEG", quality=92)
    port, core = free_port(), min(os.sched_getaffinity(0))
    arguments = ["--models", str(models), "--default-model", name, "--port", str(port), "--threads", "1"]
    arguments += ["--timeout-ms", str(1000 * ANSWER_S)]
    process = subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    most, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, sum(map(resident_mb, family(process.pid))))

    watcher = threading.Thread(target=watch)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S) as client:
            _wait(client)
            watcher.start()
            times, before = [], _ticks(process.pid)
            for _ in range(RUNS):
                start = time.perf_counter()
                query = {"regions": "true", "heatmap": "true"}
                client.post("/v1/anomaly", params=query, files={"image": buffer.getvalue()}).raise_for_status()
                times.append(time.perf_counter() - start)
            computed = (_ticks(process.pid) - before) / os.sysconf("SC_CLK_TCK") / RUNS
    finally:
        ended.set()
        if watcher.ident is not None:
            watcher.join()
        process.terminate()
        process.wait()
    return statistics.median(times), computed, most


def _wait(client: httpx.Client) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the service was not ready within {START_S} s")


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
