"""Where weights come from: a package, a publisher's server, a path, a URL; and what is refused."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from training.data.download import download
from training.errors import TrainingError
from training.networks import weights
from training.networks.autoencoder import BACKBONES, build
from training.recipe import BACKBONES as NAMES
from training.recipe import IMAGENET, Network

SHAPE = (32, 32, 3)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / weights.FOLDER


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    made = build(Network(backbone="resnet18", weights=None), SHAPE).encoder.state_dict()
    return {**made, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


class Handler(http.server.BaseHTTPRequestHandler):
    folder: Path
    asked: list[str | None]
    cuts: list[int]  # bytes after which an answer breaks off, for the requests to come

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range"))
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, start = path.read_bytes(), 0
        if given := self.headers.get("Range"):
            start = int(given.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[str, type[Handler]]]:
    (tmp_path / "published").mkdir()
    handler = type("Handler", (Handler,), {"folder": tmp_path / "published", "asked": [], "cuts": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}/", handler
        made.shutdown()
        thread.join()


def fetch(network: Network) -> None:
    wanted = weights.to_download(network)
    assert wanted is not None
    with httpx.Client(timeout=5) as client:
        download(*wanted, client)


def same(network: Network, state: dict[str, Tensor]) -> bool:
    found = build(network, SHAPE).encoder.state_dict()
    return all(torch.equal(value, state[name]) for name, value in found.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_by_its_path(state: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    network = Network(backbone="resnet18", weights=str(path))
    assert weights.to_download(network) is None
    assert same(network, state)


def test_the_published_file_is_fetched_goes_on_after_an_interruption_and_is_verified(
    state: dict[str, Tensor], home: Path, publisher: tuple[str, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, handler = publisher
    torch.save(state, handler.folder / "resnet18-f37072fd.pth")
    content = (handler.folder / "resnet18-f37072fd.pth").read_bytes()
    known = replace(
        weights.PUBLISHED["resnet18"],
        address=address,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )
    monkeypatch.setitem(weights.PUBLISHED, "resnet18", known)
    network = Network(backbone="resnet18")
    assert network.weights == IMAGENET
    with pytest.raises(TrainingError, match=rf"fetch {address}resnet18-f37072fd\.pth and put .* into {home}"):
        weights.path_of(network)

    handler.cuts.append(1 << 20)
    with pytest.raises(TrainingError, match=rf"put it into {home}"):
        fetch(network)
    fetch(network)
    assert handler.asked == [None, f"bytes={1 << 20}-"]
    assert weights.to_download(network) is None
    assert [path.name for path in home.iterdir()] == ["resnet18-f37072fd.pth"]
    assert same(network, state)

    (home / "resnet18-f37072fd.pth").write_bytes(content[:-1])
    with pytest.raises(TrainingError, match=r"SHA-256 .* is published"):
        weights.path_of(network)


def test_a_part_of_other_bytes_is_thrown_away(
    state: dict[str, Tensor], home: Path, publisher: tuple[str, type[Handler]]
) -> None:
    address, handler = publisher
    torch.save(state, handler.folder / "file")
    digits = hashlib.sha256((handler.folder / "file").read_bytes()).hexdigest()[:8]
    (handler.folder / "file").rename(handler.folder / f"mine-{digits}.pth")
    home.mkdir(parents=True)
    (home / f".mine-{digits}.pth.part").write_bytes(b"of another file")
    network = Network(backbone="resnet18", weights=f"{address}mine-{digits}.pth")
    fetch(network)
    assert handler.asked == ["bytes=15-", None]
    assert same(network, state)


def test_a_sum_in_the_name_of_an_address_is_checked(home: Path, publisher: tuple[str, type[Handler]]) -> None:
    address, handler = publisher
    (handler.folder / "mine-00000000.pth").write_bytes(b"changed on the way")
    with pytest.raises(TrainingError, match=r"SHA-256 .* where 00000000"):
        fetch(Network(backbone="resnet18", weights=f"{address}mine-00000000.pth"))
    assert list(home.iterdir()) == []


def test_a_package_that_is_not_installed_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(weights.PUBLISHED["efficientnet-lite1"], package="no-such-package")
    monkeypatch.setitem(weights.PUBLISHED, "efficientnet-lite1", known)
    network = Network(backbone="efficientnet-lite1")
    assert weights.to_download(network) is None, "there is no address to fetch it from"
    with pytest.raises(TrainingError, match=rf"pip install no-such-package, or put {known.file} into {home}"):
        build(network, SHAPE)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Dangerous:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    torch.save({"conv1.weight": Dangerous()}, tmp_path / "x.pth")
    with pytest.raises(TrainingError, match="cannot be read as torch weights"):
        build(Network(backbone="resnet18", weights=str(tmp_path / "x.pth")), SHAPE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"conv1.weight": "text"}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(TrainingError, match="not a state dict"):
        build(Network(backbone="resnet18", weights=str(tmp_path / "x.pth")), SHAPE)


def test_every_backbone_that_a_recipe_can_name_has_a_network_and_published_weights() -> None:
    assert set(BACKBONES) == set(weights.PUBLISHED) == set(NAMES)


@pytest.mark.parametrize("end", ["", ".hidden", "..", "a%2Fb"])
def test_an_address_must_end_in_a_name(end: str) -> None:
    with pytest.raises(TrainingError, match="does not end in the name of a file"):
        weights.to_download(Network(backbone="resnet18", weights=f"https://example.org/{end}"))
