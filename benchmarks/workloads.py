"""What is asked of the servers: images drawn here, requests made of them, and the answers that they must give."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from app.bundle import Bundle, load
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png_of
from benchmarks.bundles import DEFAULT, LITE0, RESNET, SEED, bundle
from benchmarks.servers.graph import Graphs

BOUNDARY = "------------------------d74496d66958873e"  # as curl writes one
CLOSE = 1e-3  # of two probabilities; graphs run in batches round otherwise than alone
NPY = "application/x-npy"


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def wire(self) -> bytes:
        """As it goes through a socket."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, f"Content-Length: {len(self.body)}", "", ""]).encode() + self.body


def form(files: Sequence[bytes], kind: str) -> tuple[dict[str, str], bytes]:
    """(headers, body) of multipart/form-data, as `curl -F image=@…` sends it."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="%d"\r\nContent-Type: {kind}\r\n\r\n'
    )
    parts = [(head % index).encode() + data + b"\r\n" for index, data in enumerate(files)]
    body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body


def infer(images: np.ndarray, binary: bool) -> tuple[dict[str, str], bytes]:
    """(headers, body) of the Open Inference Protocol: (N, H, W, C) uint8 for `image`; `probabilities` are asked for."""
    taken = {"name": "image", "shape": images.shape, "datatype": "UINT8"}
    if not binary:
        taken |= {"data": images.ravel().tolist()}
        body = json.dumps({"inputs": [taken], "outputs": [{"name": "probabilities"}]}).encode()
        return {"Content-Type": "application/json"}, body
    taken |= {"parameters": {"binary_data_size": images.nbytes}}
    given = {"name": "probabilities", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [taken], "outputs": [given]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return headers, head + images.tobytes()


def inferred(answer: bytes) -> np.ndarray:
    """`probabilities` of an answer in the protocol, whether in its JSON or behind it."""
    answer_text, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    [output] = [each for each in answer_text["outputs"] if each["name"] == "probabilities"]
    kind = np.float64 if output["datatype"] == "FP64" else np.float32
    values = output["data"] if "data" in output else np.frombuffer(answer[end:], kind)
    return np.array(values, np.float32).reshape(output["shape"])


@dataclass(frozen=True)
class Workload:
    """`paths` has every server that can do it: where it is asked."""

    name: str
    title: str
    model: str
    draw: Callable[[int], list[list[bytes]]]  # seed → each request's files
    paths: dict[str, str]
    kind: str = "image/png"
    body: Literal["form", "raw", "v2-json", "v2-binary"] = "form"
    accept: str = "*/*"
    check: str = "classify"
    top_k: int | None = None  # of Graft: the peers ignore it, and give all probabilities
    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    burst: bool = False
    seconds: float = 1.0  # of one measurement, as a multiple of what is asked for

    @cached_property
    def files(self) -> list[list[bytes]]:
        return self.draw(0)

    @property
    def images(self) -> int:
        """In one request."""
        return len(self.files[0])

    def requests(self, server: str) -> list[Request]:
        made = []
        for files in self.files:
            match self.body:
                case "form":
                    headers, body = form(files, self.kind)
                case "raw":
                    headers, body = {"Content-Type": self.kind}, files[0]
                case _:  # what a client of the protocol has is pixels
                    pixels = np.stack([loaded(bundle(self.model))[1].pixels(data) for data in files])
                    headers, body = infer(pixels, binary=self.body == "v2-binary")
            made.append(Request(self.paths[server], {**headers, "Accept": self.accept}, body))
        return made

    def wrong(self, server: str, files: Sequence[bytes], answer: bytes, folder: Path | None = None) -> str | None:
        """What of the answer is not as the bundle (of `folder`) in this process gives it; None where it is right."""
        if server == "floor":
            return None
        model, graphs = loaded(folder or bundle(self.model))
        # Only Graft decodes as training did; the others decode whole files by Pillow, as their users would.
        preprocess = model.preprocess if server.startswith("graft") else graphs.pixels
        images = np.stack([preprocess(data) for data in files])
        if self.check == "encode":
            given = np.load(io.BytesIO(answer), allow_pickle=False)
            return _apart("embedding", given, graphs.encode(images))
        if self.body.startswith("v2"):
            right = [list(each["probabilities"].values()) for each in graphs.classify(images)]
            return _apart("probabilities", inferred(answer), np.array(right, np.float32))
        results = json.loads(answer)["results"]
        if len(results) != len(files):
            return f"{len(results)} results for {len(files)} images"
        if self.check == "anomaly":
            given = [result["reconstruction_error"] for result in results]
            return _apart("reconstruction_error", np.array(given), np.array(graphs.errors(images)))
        expected = graphs.classify(images)
        for result, right in zip(results, expected, strict=True):
            chances, answer_text = right["probabilities"], result["probabilities"]
            if server.startswith("graft"):
                chances = dict(sorted(chances.items(), key=lambda each: -each[1])[: self.top_k])
            if set(answer_text) != set(chances):
                return f"labels {sorted(answer_text)} in place of {sorted(chances)}"
            apart = _apart(
                "probabilities", np.array([answer_text[k] for k in chances]), np.array(list(chances.values()))
            )
            if apart:
                return apart
        return None


def _apart(what: str, given: np.ndarray, right: np.ndarray) -> str | None:
    if given.shape != right.shape:
        return f"{what} of shape {given.shape} in place of {right.shape}"
    difference = float(np.abs(given - right).max() / max(1.0, float(np.abs(right).max())))
    return None if difference <= CLOSE else f"{what} off by {difference:.2g}"


@lru_cache
def loaded(folder: Path) -> tuple[Bundle, Graphs]:
    return load(folder, threads=1), Graphs(folder)


# --- drawings: garments, each moved, brightened and grained by chance, so that no two files are the same ------------


def small(count: int) -> Callable[[int], list[list[bytes]]]:
    return lambda seed: [[png_of(pixels)] for pixels in _garments(count, seed)]


def many(requests: int, images: int) -> Callable[[int], list[list[bytes]]]:
    def draw(seed: int) -> list[list[bytes]]:
        files = [png_of(pixels) for pixels in _garments(requests * images, seed)]
        return [files[at : at + images] for at in range(0, len(files), images)]

    return draw


def photographs(count: int, height: int, width: int) -> Callable[[int], list[list[bytes]]]:
    """JPEGs with shading, edges and grain, in colour."""

    def draw(seed: int) -> list[list[bytes]]:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
        grain = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
        found = []
        for _ in range(count):
            shading = np.stack([x, y, (x + y) / 2], axis=-1) * rng.uniform(60, 200, 3).astype(np.float32)
            for cx, cy, radius, level in rng.uniform((0, 0, 0.05, 20), (1, 1, 0.4, 90), (8, 4)):
                shading += (((x - cx) ** 2 + (y - cy) ** 2) < radius**2)[..., None] * np.float32(level)
            shading += np.roll(grain, tuple(rng.integers(0, (height, width))), (0, 1))
            buffer = io.BytesIO()
            Image.fromarray(np.clip(shading, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
            found.append([buffer.getvalue()])
        return found

    return draw


def _garments(count: int, seed: int) -> np.ndarray:
    """(count, 28, 28, 1) uint8"""
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.asarray(garment(kind)) for kind in GARMENTS]).astype(np.float32)
    images = np.empty((count, 28, 28, 1), np.uint8)
    for index in range(count):
        image = drawn[rng.integers(len(drawn))]
        grained = image * rng.uniform(0.5, 1.2) + (image > 0) * rng.normal(0, 12, image.shape)
        moved = np.roll(grained, tuple(rng.integers(-3, 4, 2)), (0, 1))
        images[index, ..., 0] = np.clip(moved, 0, 255).astype(np.uint8)
    return images


# --- the workloads ---------------------------------------------------------------------------------------------------

_FORMS = {"floor": "/", "naive": "/classify", "graft": "/v1/classify", "litserve": "/classify", "granian": "/classify"}
_BOTH = {"graft-int8": "/v1/classify"}  # beside fp32
_INFER = "/v2/models/classifier/infer"
_PEERS = _FORMS | {"bentoml": "/classify", "ray": "/classify"}
_PARAMETERS = f"/v1/classify?model={SEED}&top_k=3"
_RAW = {"floor": "/", "naive": "/classify-raw", "granian": "/classify-raw", "graft": "/v1/classify"}

WORKLOADS = (
    Workload("png", "one 28×28 PNG, multipart", SEED, small(4096), _PEERS, burst=True),
    Workload(
        "png-raw",
        "one 28×28 PNG, raw body",
        SEED,
        small(4096),
        _RAW,
        body="raw",
    ),
    Workload(
        "params",
        "one 28×28 PNG, multipart, with `model` and `top_k`",
        SEED,
        small(4096),
        _FORMS | {"graft": _PARAMETERS},
        top_k=3,
        concurrency=(1, 32),
    ),
    Workload(
        "params-raw",
        "one 28×28 PNG, raw body, with `top_k`",
        SEED,
        small(4096),
        _RAW | {"graft": "/v1/classify?top_k=2"},
        body="raw",
        top_k=2,
        concurrency=(1, 32),
    ),
    Workload(
        "jpeg-small",
        "one 64×64 JPEG, raw body, with `model` and `top_k`",
        SEED,
        photographs(512, 64, 64),
        _RAW | {"graft": _PARAMETERS},
        kind="image/jpeg",
        body="raw",
        top_k=3,
        concurrency=(1, 32),
    ),
    Workload(
        "many",
        "64 PNGs in one request",
        SEED,
        many(128, 64),
        _PEERS | {"naive": "/classify-many", "granian": "/classify-many"},
        concurrency=(1, 8),
    ),
    Workload("default", "one 28×28 PNG, multipart, the default model", DEFAULT, small(4096), _FORMS | _BOTH),
    Workload(
        "jpeg-1mp",
        "a 1-megapixel JPEG",
        SEED,
        photographs(64, 1000, 1000),
        _FORMS,
        kind="image/jpeg",
        concurrency=(1, 8),
    ),
    Workload(
        "jpeg-12mp",
        "a 12-megapixel JPEG",
        SEED,
        photographs(12, 3000, 4000),
        _FORMS,
        kind="image/jpeg",
        concurrency=(1, 8),
        seconds=2,
    ),
    Workload(
        "resnet",
        "ResNet-18 at 224², a JPEG",
        RESNET,
        photographs(512, 224, 224),
        _PEERS | _BOTH,
        kind="image/jpeg",
        concurrency=(1, 8, 32),
        seconds=3,
    ),
    Workload(
        "lite0",
        "EfficientNet-Lite0 at 224², a JPEG",
        LITE0,
        photographs(512, 224, 224),
        _PEERS,
        kind="image/jpeg",
        concurrency=(1, 8, 32),
        seconds=3,
    ),
    Workload(
        "photo",
        "a 1600×1200 JPEG for EfficientNet-Lite0 at 224²",
        LITE0,
        photographs(64, 1200, 1600),
        _PEERS,
        kind="image/jpeg",
        concurrency=(1, 8),
        seconds=3,
    ),
    Workload(
        "anomaly",
        "anomaly score of a PNG",
        SEED,
        small(4096),
        {"floor": "/", "naive": "/anomaly", "graft": "/v1/anomaly"},
        check="anomaly",
        concurrency=(1, 32),
    ),
    Workload(
        "encode",
        "embedding of a PNG, as npy",
        SEED,
        small(4096),
        {"floor": "/", "naive": "/encode", "graft": "/v1/encode"},
        accept=NPY,
        check="encode",
        concurrency=(1, 32),
    ),
    Workload(
        "v2-json",
        "Open Inference Protocol, pixels in JSON",
        SEED,
        small(4096),
        {"floor": "/", "naive": _INFER, "mlserver": _INFER, "graft": f"/v2/models/{SEED}/infer"},
        body="v2-json",
        concurrency=(1, 8, 32, 128),
    ),
    Workload(
        "v2-binary",
        "Open Inference Protocol, pixels as bytes",
        SEED,
        small(4096),
        {"floor": "/", "triton": _INFER, "graft": f"/v2/models/{SEED}/infer"},
        body="v2-binary",
        concurrency=(1, 8, 32, 128),
    ),
)
