import os
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import DRAWN
from PIL import Image
from support import draw_folder

from app.bundle import load
from app.bundle.bundle import Bundle
from app.bundle.header import read_header
from app.score.batches import Batch, Batches, Budget


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    return load(models / "tiny/1")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sorted(map(str, draw_folder(tmp_path_factory.mktemp("drawn") / "drawn", 5, seed=0).rglob("*.png")))


def batches(
    bundle: Any,
    paths: list[str],
    done: Collection[str] = (),
    threads: int = 2,
    memory: int = 1 << 30,
    sized: bool = False,
) -> Batches:
    budget = Budget(memory)
    return Batches(bundle, paths, done, 4, threads, 1_000_000, max_bytes=1_000_000, budget=budget, sized=sized)


def flat(found: list[Batch]) -> list[str]:
    return [path for batch in found for path in batch.paths]


def test_images_come_in_order_and_as_the_bundle_sees_them(bundle: Bundle, paths: list[str]) -> None:
    found = list(batches(bundle, paths))
    assert flat(found) == paths
    assert [len(batch.images) for batch in found] == [4] * 5
    for batch in found:
        alone = [bundle.preprocess(Path(path).read_bytes()) for path in batch.paths]
        assert np.array_equal(batch.images, np.stack(alone))
        assert batch.sizes == []


def test_batches_have_the_sizes_of_the_upright_pictures_if_they_are_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    lying, exif = Image.new("L", (30, 20)), Image.Exif()
    exif[0x0112] = 6
    names = [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.png", "d.png")]
    Image.new("L", (50, 40)).save(names[0])
    lying.save(names[1], exif=exif)
    Path(names[2]).write_bytes(b"none")
    lying.save(names[3])
    [batch] = batches(bundle, names, sized=True)
    assert batch.paths == [names[0], names[1], names[3]]
    assert batch.sizes == [(50, 40), (20, 30), (30, 20)]


def test_what_runs_together_does_not_depend_on_what_is_done(bundle: Bundle, paths: list[str]) -> None:
    whole = {tuple(batch.paths) for batch in batches(bundle, paths)}
    done = {*paths[:6], paths[17]}
    found = list(batches(bundle, paths, done))
    assert {tuple(batch.paths) for batch in found} <= whole
    assert flat(found) == paths[4:]


def test_what_is_no_image_is_told_and_brings_no_neighbours(bundle: Bundle, paths: list[str], tmp_path: Path) -> None:
    pipe, gone, empty = (str(tmp_path / name) for name in ("pipe.png", "gone.png", "empty.png"))
    os.mkfifo(pipe)
    Path(empty).touch()
    [batch] = batches(bundle, [paths[0], pipe, gone, empty], {paths[0]})
    assert batch.paths == []
    assert [(p.path, p.kind, p.detail) for p in batch.problems[:2]] == [
        (pipe, "unreadable", "not a file"),
        (gone, "unreadable", "no such file or directory"),
    ]
    assert (batch.problems[2].path, batch.problems[2].kind) == (empty, "not-an-image")


class Counting:
    """A bundle that counts what it has been given to decode."""

    tiled = False

    def __init__(self, bundle: Bundle) -> None:
        self.manifest, self._bundle = bundle.manifest, bundle
        self.count, self._lock = 0, threading.Lock()

    def preprocess(self, data: bytes, max_pixels: int) -> np.ndarray:
        with self._lock:
            self.count += 1
        return self._bundle.preprocess(data, max_pixels)


@pytest.mark.parametrize("threads", [1, 3])
def test_only_a_few_batches_are_decoded_ahead(bundle: Bundle, paths: list[str], threads: int) -> None:
    counting = Counting(bundle)
    many = [path for path in paths for _ in range(10)]
    for taken, _ in enumerate(batches(counting, many, threads=threads), 1):
        assert counting.count <= 4 * (taken + threads)
    assert 4 * taken == len(many)


def test_what_is_decoded_at_once_stays_within_the_budget(bundle: Bundle, tmp_path: Path) -> None:
    """Eight threads, and room for one image and a half."""
    files = [tmp_path / f"{n}.png" for n in range(12)]
    for file in files:
        file.write_bytes(DRAWN["PNG RGBA"](300, 300))
    needed = read_header(files[0].read_bytes()).peak_bytes(bundle.manifest.input)
    under_way, most, lock = 0, 0, threading.Lock()

    class Watched:
        manifest, tiled = bundle.manifest, False

        def preprocess(self, data: bytes, max_pixels: int) -> np.ndarray:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.01)
            with lock:
                under_way -= 1
            return bundle.preprocess(data, max_pixels)

    paths = [str(file) for file in files]
    found = list(batches(Watched(), paths, threads=8, memory=needed * 3 // 2))
    assert flat(found) == paths
    assert most == 1
    assert len(flat(list(batches(Watched(), paths, threads=8, memory=needed * 2)))) == len(paths)
    assert most == 2


def test_an_image_that_could_never_fit_is_a_problem_and_the_others_are_scored(bundle: Bundle, tmp_path: Path) -> None:
    small, large = tmp_path / "a.png", tmp_path / "b.png"
    small.write_bytes(DRAWN["PNG RGBA"](30, 30))
    large.write_bytes(DRAWN["PNG RGBA"](900, 900))
    [batch] = batches(bundle, [str(small), str(large)], memory=6_000_000)
    assert batch.paths == [str(small)]
    [problem] = batch.problems
    assert (problem.path, problem.kind) == (str(large), "too-many-pixels")
    assert "at most 6,000,000 are available (DECODE_MB): make it smaller" in problem.detail
