import gzip
import json
import os
import zlib
from pathlib import Path

import httpx
import psutil
import pytest
from support import assert_error, assert_problem, running

INDEX = "/v2/repository/index"
BODY = json.dumps({"ready": True, "more": "x" * 900_000}).encode()


def post(client: httpx.Client, body: bytes, coding: str = "gzip") -> httpx.Response:
    return client.post(INDEX, content=body, headers={"content-encoding": coding})


@pytest.mark.parametrize("level", [0, 9])
def test_a_compressed_body_is_decompressed(client: httpx.Client, level: int) -> None:
    assert post(client, gzip.compress(BODY, level)).status_code == 200
    assert post(client, zlib.compress(BODY, level), "Deflate").status_code == 200
    packed = gzip.compress(BODY)
    parts = iter([packed[at : at + 100] for at in range(0, 1000, 100)] + [packed[1000:], b""])
    assert client.post(INDEX, content=parts, headers={"content-encoding": "gzip"}).status_code == 200


def test_the_limit_is_on_the_decompressed_size(client: httpx.Client) -> None:
    assert_error(post(client, gzip.compress(b" " * 999_998 + b"{}")[:-8]), 400, "ends too early")
    assert post(client, gzip.compress(b" " * 999_998 + b"{}")).status_code == 200
    assert_error(post(client, gzip.compress(b" " * 999_999 + b"{}")), 413, "more than the 1,000,000")


def test_compressed_bytes_that_decompress_to_nothing_are_limited_too(client: httpx.Client) -> None:
    packer = zlib.compressobj()
    empty = packer.compress(b"") + b"".join(packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    assert_error(post(client, empty + b"\0\0\0\xff\xff" * 250_000, "deflate"), 413, "more than the 1,000,000")


@pytest.mark.parametrize(
    ("body", "coding", "message"),
    [
        (b"", "gzip", "ends too early"),
        (b"{}", "gzip", "not gzip"),
        (b"{}", "deflate", "not deflate"),
        (gzip.compress(b"{}", mtime=0), "deflate", "not deflate"),
        (gzip.compress(b"{}", mtime=0)[:-1], "gzip", "ends too early"),
        (gzip.compress(b"{}", mtime=0)[:-8] + bytes(8), "gzip", "not gzip"),
        (gzip.compress(b"{}", mtime=0) + b"x", "gzip", "goes on after the end"),
        (gzip.compress(b"{}", mtime=0) * 2, "gzip", "goes on after the end"),
    ],
)
def test_a_body_that_does_not_decompress_is_refused(
    client: httpx.Client, body: bytes, coding: str, message: str
) -> None:
    assert_error(post(client, body, coding), 400, message)
    parts = (body[at : at + 1] for at in range(len(body)))
    assert_error(client.post(INDEX, content=parts, headers={"content-encoding": coding}), 400, message)


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd", ""])
def test_other_codings_are_refused(client: httpx.Client, coding: str) -> None:
    assert_error(post(client, b"{}", coding), 415, "Content-Encoding")


def test_other_routes_refuse_a_compressed_body(client: httpx.Client) -> None:
    headers = {"content-encoding": "gzip", "content-type": "image/png"}
    answer = client.post("/v1/classify", content=gzip.compress(b"{}", mtime=0), headers=headers)
    assert_problem(answer, 415, "unsupported-media-type")


def test_a_decompression_bomb_costs_no_memory(models: Path) -> None:
    """Ten bodies that decompress to 256 MB, sent to a process whose memory is measured."""
    packer = zlib.compressobj(1)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    with running(GRAFT_MODELS=str(models)) as (process, address, _), httpx.Client(base_url=address) as client:
        post(client, zlib.compress(os.urandom(100_000)), "deflate")
        before = psutil.Process(process.pid).memory_info().rss
        for _ in range(10):
            assert_error(post(client, bomb, "deflate"), 413)
        assert psutil.Process(process.pid).memory_info().rss - before < 100e6
