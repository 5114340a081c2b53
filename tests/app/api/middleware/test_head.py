"""HEAD on every address that answers GET: the same status, the same headers, no body."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import save_tiny, serving, tiny

from app.api.routes.pages import FOLDER
from app.bundle.store import save
from app.settings import Settings

DIFFER = {"date", "x-request-id", "server-timing"}
OTHERS = ["/", "/docs", "/openapi.json", "/models/whole", "/v2/", "/v1/models/none", "/nothing", "/v1/classify"]
STATIC = [f"/web/{path.relative_to(FOLDER).as_posix()}" for path in sorted(FOLDER.rglob("*.*"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    fields, files = tiny()
    save(folder, "whole", fields, files | {"card.md": b"# A card", "report.html": b"<h2>A report</h2>"})
    return folder


@pytest.fixture(scope="module", params=["", "/graft"])
def client(request: pytest.FixtureRequest, models: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=models, root_path=request.param)) as client:
        yield client


def assert_alike(client: httpx.Client, path: str, **request: dict[str, str]) -> None:
    got, head = client.get(path, **request), client.head(path, **request)
    assert head.status_code == got.status_code, path
    assert head.content == b"", path
    kept = [{name: value for name, value in each.headers.items() if name not in DIFFER} for each in (got, head)]
    if path.endswith(("/metrics", "/stats")):  # which have counted the first
        for each in kept:
            assert int(each.pop("content-length")) > 0
    assert kept[1] == kept[0], path


def test_every_address_that_answers_get_answers_head(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    names = [path for path, verbs in paths.items() if "get" in verbs]
    assert {"/healthz", "/readyz", "/metrics", "/v1/models", "/v2", "/v2/health/ready"} <= set(names)
    for name in [*names, *OTHERS, *STATIC]:
        assert_alike(client, name.replace("{name}", "whole").replace("{version}", "1"))


def test_a_page_that_has_not_changed_is_304_to_both(client: httpx.Client) -> None:
    etag = client.get("/web/style.css").headers["etag"]
    assert_alike(client, "/web/style.css", headers={"If-None-Match": etag})
    assert client.head("/web/style.css", headers={"If-None-Match": etag}).status_code == 304


def test_what_get_is_refused_head_is_refused(models: Path, tmp_path: Path) -> None:
    with serving(Settings(models=models, api_keys="k")) as client:
        for path in ("/healthz", "/v1/models", "/v2/models/whole", "/metrics"):
            assert_alike(client, path)
        assert client.head("/v1/models").status_code == 401
    (save_tiny(tmp_path) / "head.onnx").unlink()
    with serving(Settings(models=tmp_path)) as client:
        for path in ("/healthz", "/readyz", "/v2/health/ready"):
            assert_alike(client, path)
        assert client.head("/readyz").status_code == 503


def test_no_byte_follows_the_head_and_the_connection_goes_on(client: httpx.Client) -> None:
    """As a socket sees it: a body would be taken for the next answer."""
    host, port = client.base_url.host, client.base_url.port
    with socket.create_connection((host, port), timeout=10) as line:
        for _ in range(3):
            line.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        line.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: line.recv(65536), b""))
    heads = received.split(b"\r\n\r\n")
    assert heads.pop() == b""
    assert len(heads) == 4
    for head in heads:
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"transfer-encoding" not in head.lower()


def test_it_is_counted_by_its_operation(client: httpx.Client) -> None:
    def count() -> float:
        found = re.search(r'^graft_requests_total\{.*operation="readyz".*\} (\S+)', client.get("/metrics").text, re.M)
        return float(found[1]) if found else 0

    before = count()
    client.head("/readyz")
    assert count() == before + 1


def test_what_else_an_address_takes_is_said_with_it(client: httpx.Client) -> None:
    for path in ("/healthz", "/", "/v2"):
        answer = client.delete(path)
        assert answer.status_code == 405
        assert {each.strip() for each in answer.headers["allow"].split(",")} == {"GET", "HEAD"}, path
