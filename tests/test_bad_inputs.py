"""Bad images of every kind through every operation, while good requests are answered beside them."""

import base64
import gzip
import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from support import assert_problem, running, serving

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.settings import Settings

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
GOOD = png(garment("bag"))
RAW = {"content-type": "image/png"}
OPERATIONS = ("classify", "encode", "reconstruct", "anomaly", "predict")


def file_of(kind: str) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def float_tiff(value: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


CUT = {
    f"{kind} cut at {tenth} tenths": file_of(kind)[: len(file_of(kind)) * tenth // 10]
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    for tenth in range(1, 10)
}
# What it is, the body, its status, the problem's kind.
IMAGES: list[tuple[str, bytes, int, str]] = [
    *((name, data, 422, "broken-image") for name, data in CUT.items()),
    ("text", b"hello, this is no picture", 415, "not-an-image"),
    ("html", b"<!doctype html><p>no", 415, "not-an-image"),
    ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not-an-image"),
    ("pdf", b"%PDF-1.7 nothing", 415, "not-an-image"),
    ("zip", b"PK\x03\x04" + b"\0" * 60, 415, "not-an-image"),
    ("gzipped png", gzip.compress(GOOD), 415, "not-an-image"),
    ("one byte", b"\x89", 415, "not-an-image"),
    ("null bytes", b"\0" * 1000, 415, "not-an-image"),
    ("float tiff", float_tiff(0.5), 415, "not-an-image"),
    ("float tiff of nan", float_tiff(float("nan")), 415, "not-an-image"),
    ("png of 65,535 squared", png_claiming(65535, 65535), 413, "too-many-pixels"),
    ("png of 2^31 - 1 squared", png_claiming(2**31 - 1, 2**31 - 1), 413, "too-many-pixels"),
    ("png of a million by one", png_claiming(1_000_001, 1), 413, "too-many-pixels"),
    ("png without pixels", png_claiming(0, 0), 422, "broken-image"),
    ("png without rows", png_claiming(5, 0), 422, "broken-image"),
    ("png with too few rows", png_claiming(8, 8, b"\0" * 20), 422, "broken-image"),
    ("png with a wrong sum", patched(GOOD, 30, b"\0\0\0"), 422, "broken-image"),
    ("gif of 65,535 squared", patched(file_of("GIF"), 6, b"\xff\xff\xff\xff"), 413, "too-many-pixels"),
    ("bmp of 65,535 squared", patched(file_of("BMP"), 18, struct.pack("<ii", 65535, 65535)), 413, "too-many-pixels"),
    ("jpeg magic alone", b"\xff\xd8\xff", 422, "broken-image"),
    ("webp magic alone", b"RIFF\x10\0\0\0WEBP", 422, "broken-image"),
    ("tiff magic alone", b"II*\0", 422, "broken-image"),
    ("a bomb of 44 KB", png_claiming(1_000_000, 1_000_000, b"\0" * 44_000_000), 413, "too-many-pixels"),
]


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=models, max_images=128, max_body_mb=8, max_pixels=1_000_000)) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def neighbours(client: httpx.Client) -> Iterator[list[int]]:
    """Good requests without a pause while all these tests run: every one of them is answered."""
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=client.base_url) as own:
            while not stop.is_set() or len(statuses) < 100:
                statuses.append(own.post("/v1/classify", content=GOOD, headers=RAW).status_code)
                time.sleep(0.002)

    thread = threading.Thread(target=ask)
    thread.start()
    yield statuses
    stop.set()
    thread.join()
    assert len(statuses) >= 100
    assert set(statuses) == {200}


@pytest.mark.parametrize(("data", "status", "kind"), [row[1:] for row in IMAGES], ids=[row[0] for row in IMAGES])
def test_a_bad_image_is_refused_by_every_operation(client: httpx.Client, data: bytes, status: int, kind: str) -> None:
    for operation in OPERATIONS:
        assert_problem(client.post(f"/v1/{operation}", content=data, headers=RAW), status, kind)
    together = [("image", GOOD), ("image", data)]
    assert assert_problem(client.post("/v1/predict", files=together), status, kind)["index"] == 1
    encoded = {"images": [base64.b64encode(each).decode() for each in (data, GOOD)]}
    assert assert_problem(client.post("/v1/predict", json=encoded), status, kind)["index"] == 0


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        ({"content": b""}, 415, "unsupported-media-type"),
        ({"content": b"", "headers": RAW}, 400, "malformed-request"),
        ({"content": GOOD, "headers": {"content-type": "application/octet-stream"}}, 415, "unsupported-media-type"),
        ({"content": GOOD, "headers": RAW | {"content-encoding": "br"}}, 415, "unsupported-media-type"),
        ({"content": b"x" * 8_000_001, "headers": RAW}, 413, "body-too-large"),
        ({"json": {"images": ["QQ=="] * 10_001}}, 413, "too-many-images"),
        ({"json": {"images": [None]}}, 400, "malformed-request"),
        ({"json": {"images": ["data:image/png;base64"]}}, 400, "malformed-request"),
        ({"json": "images"}, 400, "malformed-request"),
        ({"files": [("f", GOOD)] * 129}, 413, "too-many-images"),
        ({"content": GOOD, "headers": RAW, "params": {"model": "../tiny"}}, 404, "unknown-model"),
        ({"content": GOOD, "headers": RAW, "params": {"model": "tiny@../1"}}, 404, "unknown-model"),
        ({"content": GOOD, "headers": RAW, "params": {"model": "x" * 5000}}, 404, "unknown-model"),
        ({"content": GOOD, "headers": RAW | {"x-timeout-ms": "-5"}}, 400, "malformed-request"),
        ({"content": GOOD, "headers": RAW | {"accept": "text/plain"}}, 406, "not-acceptable"),
    ],
)
def test_a_bad_request_is_refused_by_every_operation(
    client: httpx.Client, operation: str, request_: dict[str, Any], status: int, kind: str
) -> None:
    assert_problem(client.post(f"/v1/{operation}", **request_), status, kind)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("classify", "top_k=0"),
        ("classify", "top_k=1e3"),
        ("classify", "in_domain=maybe"),
        ("classify", "explain=2"),
        ("anomaly", "heatmap=perhaps"),
        ("anomaly", "false_alarm_rate=0"),
        ("anomaly", "false_alarm_rate=1"),
        ("anomaly", "false_alarm_rate=nan"),
        ("anomaly", "false_alarm_rate=inf"),
        ("predict", "false_alarm_rate=-0.5"),
        ("predict", "top_k="),
    ],
)
def test_a_bad_query_value_is_named(client: httpx.Client, path: str, query: str) -> None:
    answer = client.post(f"/v1/{path}?{query}", content=GOOD, headers=RAW)
    assert_problem(answer, 400, "malformed-request", query.partition("=")[0])


def test_the_method_and_the_path_are_checked(client: httpx.Client) -> None:
    assert_problem(client.get("/v1/classify"), 405, "method-not-allowed")
    assert_problem(client.put("/v1/predict", content=GOOD), 405, "method-not-allowed")
    assert_problem(client.post("/v1/classifye", content=GOOD, headers=RAW), 404, "not-found")


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1)])
def test_the_smallest_and_the_narrowest_are_images(client: httpx.Client, size: tuple[int, int]) -> None:
    for operation in OPERATIONS:
        assert client.post(f"/v1/{operation}", content=png(Image.new("L", size)), headers=RAW).status_code == 200


def test_bombs_cost_neither_time_nor_memory(models: Path) -> None:
    """On a process of its own, whose memory can be seen: files and bodies that unpack to a gigabyte."""
    gigabyte = zlib.compressobj(9)
    packed = b"".join(gigabyte.compress(b"\0" * (1 << 20)) for _ in range(1024)) + gigabyte.flush()
    header = struct.pack(">IIBBBBB", 32_000, 32_000, 8, 0, 0, 0, 0)
    text = chunk(b"zTXt", b"Comment\0\0" + packed)
    small = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 72)) + chunk(b"IEND", b"")
    magic = b"\x89PNG\r\n\x1a\n"
    bombs = {
        "pixels": magic + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""),
        "rows": magic + chunk(b"IHDR", small) + chunk(b"IDAT", packed) + chunk(b"IEND", b""),
        "text": magic + chunk(b"IHDR", small) + text + rows,
    }
    with running(GRAFT_MODELS=str(models)) as (process, address, _), httpx.Client(base_url=address) as client:
        client.post("/v1/predict", content=GOOD, headers=RAW).raise_for_status()
        before = psutil.Process(process.pid).memory_info().rss
        for name, bomb in bombs.items():
            start = time.monotonic()
            statuses = {client.post("/v1/predict", content=bomb, headers=RAW).status_code for _ in range(3)}
            assert statuses <= {200, 413, 422}, name
            assert time.monotonic() - start < 3, name
        body = gzip.compress(b"\0" * (1 << 26))
        refused = client.post("/v1/predict", content=body, headers=RAW | {"content-encoding": "gzip"})
        assert_problem(refused, 415, "unsupported-media-type")
        assert psutil.Process(process.pid).memory_info().rss - before < 100e6
