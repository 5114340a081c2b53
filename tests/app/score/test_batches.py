import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import draw_folder

from app.bundle import load
from app.bundle.bundle import Bundle
from app.score.batches import Batch, Batches


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    return load(models / "tiny/1")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sorted(map(str, draw_folder(tmp_path_factory.mktemp("drawn") / "drawn", 5, seed=0).rglob("*.png")))


def batches(bundle: Any, paths: list[str], done: Collection[str] = (), threads: int = 2) -> Batches:
    return Batches(bundle, paths, done, size=4, threads=threads, max_pixels=1_000_000, max_bytes=1_000_000)


def flat(found: list[Batch]) -> list[str]:
    return [path for batch in found for path in batch.paths]


def test_images_come_in_order_and_as_the_bundle_sees_them(bundle: Bundle, paths: list[str]) -> None:
    found = list(batches(bundle, paths))
    assert flat(found) == paths
    assert [len(batch.images) for batch in found] == [4] * 5
    for batch in found:
        alone = [bundle.preprocess(Path(path).read_bytes()) for path in batch.paths]
        assert np.array_equal(batch.images, np.stack(alone))


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
