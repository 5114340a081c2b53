"""Against a server of our own, which behaves as mirrors do and as they should not."""

import contextlib
import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from training.data.download import SOURCES, RemoteFile, Source, download
from training.data.named import CLASSES
from training.errors import TrainingError

CONTENT = bytes(range(256)) * 1000
FILE = RemoteFile("numbers", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
GOOD = gzip.compress(CONTENT)


class Handler(http.server.BaseHTTPRequestHandler):
    requested: list[str]

    def do_GET(self) -> None:
        self.requested.append(self.path)
        mirror = self.path.split("/")[1]
        if mirror == "moved":
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "good"))
            self.end_headers()
            return
        body = {
            "good": GOOD,
            "labelled": GOOD,
            "cut": GOOD,
            "other": gzip.compress(CONTENT[::-1]),
            "plain": b"<html>a login page</html>",
            "bomb": gzip.compress(b"\x00" * 50_000_000),
            "endless": b"\x1f\x8b" + b"\x00" * 5_000_000,
        }.get(mirror)
        if body is None:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if mirror == "labelled":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has heard enough
            self.wfile.write(body[: len(body) // 2] if mirror == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    requested: list[str] = []
    handler = type("Handler", (Handler,), {"requested": requested})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", requested
        made.shutdown()
        thread.join()


def fetch(address: str, mirrors: list[str], folder: Path) -> None:
    source = Source(tuple(f"{address}/{mirror}/" for mirror in mirrors), (FILE,))
    with httpx.Client(timeout=5) as client:
        download(source, folder, client)


@pytest.mark.parametrize("mirror", ["good", "moved", "labelled"])
def test_a_good_mirror_gives_a_verified_file(server: tuple[str, list[str]], tmp_path: Path, mirror: str) -> None:
    fetch(server[0], [mirror], tmp_path / "new/folder")
    assert gzip.decompress((tmp_path / "new/folder/numbers.gz").read_bytes()) == CONTENT


@pytest.mark.parametrize("bad", ["down", "cut", "other", "plain", "bomb", "endless"])
def test_a_bad_mirror_is_passed_over(server: tuple[str, list[str]], tmp_path: Path, bad: str) -> None:
    fetch(server[0], [bad, "good"], tmp_path)
    assert gzip.decompress((tmp_path / "numbers.gz").read_bytes()) == CONTENT
    assert [path.split("/")[1] for path in server[1]] == [bad, "good"]
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.gz"]


def test_when_all_fail_each_is_named_and_nothing_is_left(server: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as failed:
        fetch(server[0], ["down", "other"], tmp_path)
    message = str(failed.value)
    assert "/down/: " in message
    assert "503" in message
    assert "/other/: SHA-256" in message
    assert f"put it into {tmp_path}" in message
    assert list(tmp_path.iterdir()) == []


def test_no_connection_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"numbers\.gz could not be downloaded: http://127\.0\.0\.1:9/"):
        fetch("http://127.0.0.1:9", ["x"], tmp_path)


def test_what_is_there_is_not_fetched_again_unless_it_is_damaged(server: tuple[str, list[str]], tmp_path: Path) -> None:
    fetch(server[0], ["good"], tmp_path)
    fetch(server[0], ["good"], tmp_path)
    assert len(server[1]) == 1
    (tmp_path / "numbers.gz").write_bytes(GOOD[:-100])
    fetch(server[0], ["good"], tmp_path)
    assert len(server[1]) == 2
    assert (tmp_path / "numbers.gz").read_bytes() == GOOD


def test_every_named_data_set_has_mirrors_and_four_files() -> None:
    assert set(SOURCES) == set(CLASSES)
    for source in SOURCES.values():
        assert len(source.mirrors) >= 2
        assert len(source.files) == 4
        assert all(mirror.endswith("/") for mirror in source.mirrors)
