"""Object storage without pyarrow: its file systems are injected. tests/app/score/test_on_ray.py has real ones."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import draw_folder, save_tiny

from app.bundle import load
from app.errors import BodyTooLarge, CannotScore
from app.score import storage
from app.score.batches import Batches, Budget
from app.score.storage import Roots


class File(io.BytesIO):
    def size(self) -> int:
        return len(self.getvalue())


class Bucket:
    """As pyarrow's file systems read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open_input_file(self, path: str) -> File:
        return File((self._folder / path.removeprefix("bucket/")).read_bytes())


class Build:
    """Takes a while, as one that asks for a bucket's region does: long enough for every thread to come along."""

    def __init__(self, folder: Path) -> None:
        self.uris: list[str] = []
        self._folder = folder

    def __call__(self, uri: str) -> tuple[Bucket, str]:
        self.uris.append(uri)
        time.sleep(0.05)
        return Bucket(self._folder), "bucket"


def test_a_root_has_one_file_system_however_many_images_and_threads(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "some photos", 8, seed=0)
    build = Build(tmp_path)
    roots = Roots(build)
    paths = [f"s3://bucket/some%20photos/{path.relative_to(folder)}" for path in sorted(folder.rglob("*.png"))]
    bundle = load(save_tiny(tmp_path / "models"))
    batches = Batches(
        bundle,
        paths,
        (),
        2,
        threads=4,
        max_pixels=10**6,
        max_bytes=10**6,
        budget=Budget(10**8),
        read=lambda path, most: storage.read(path, most, roots),
    )
    read = [path for batch in batches for path in batch.paths]
    assert read == paths
    assert build.uris == ["s3://bucket/"]


def test_threads_that_come_first_together_share_what_one_of_them_builds(tmp_path: Path) -> None:
    build = Build(tmp_path)
    roots, together = Roots(build), threading.Barrier(8)

    def find(number: int) -> object:
        together.wait()
        return roots.find(f"s3://bucket/{number}.png")[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(find, range(8)))
    assert len(set(found)) == 1
    assert build.uris == ["s3://bucket/"]


def test_every_bucket_scheme_and_host_is_a_root_of_its_own() -> None:
    tops = {"s3://bucket/": "bucket", "s3://other/": "other", "gs://bucket/": "bucket", "hdfs://host:9000/": "/"}
    built: list[str] = []

    def build(uri: str) -> tuple[str, str]:
        built.append(uri)
        return uri, tops[uri]

    roots = Roots(build)
    for _ in range(2):
        assert roots.find("s3://bucket/a%20b/c%23d.png") == ("s3://bucket/", "bucket/a b/c#d.png")
        assert roots.find("s3://bucket/photos/") == ("s3://bucket/", "bucket/photos")
        assert roots.find("s3://bucket") == ("s3://bucket/", "bucket")
        assert roots.find("s3://other/a.png") == ("s3://other/", "other/a.png")
        assert roots.find("gs://bucket/a.png") == ("gs://bucket/", "bucket/a.png")
        assert roots.find("hdfs://host:9000/a/b") == ("hdfs://host:9000/", "/a/b")
        assert roots.find("hdfs://host:9000") == ("hdfs://host:9000/", "/")
    assert built == list(tops)


def test_a_root_that_could_not_be_built_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"four")
    faults = [OSError("no route to host\nand more")]

    def build(uri: str) -> tuple[Bucket, str]:
        if faults:
            raise faults.pop()
        return Bucket(tmp_path), "bucket"

    roots = Roots(build)
    with pytest.raises(CannotScore, match=r"^s3://bucket/a.png: no route to host$"):
        storage.read("s3://bucket/a.png", 4, roots)
    assert storage.read("s3://bucket/a.png", 4, roots) == b"four"
    with pytest.raises(BodyTooLarge, match="4 bytes; at most 3"):
        storage.read("s3://bucket/a.png", 3, roots)
