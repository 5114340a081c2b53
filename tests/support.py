"""What several tests need: a tiny bundle, made without torch, and the one check of an error's shape."""

import contextlib
import io
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import uvicorn
from fastapi import FastAPI
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageChops
from prometheus_client.parser import text_string_to_metric_families

import app
from app.api.fast_path import FastPath
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import thumbnail_of
from app.bundle.index import FILE as INDEX_FILE
from app.bundle.index import text_of
from app.bundle.manifest import (
    ANOMALY_MAP,
    PATCH_DISTANCE,
    PATCH_FEATURES,
    Anomaly,
    Classifier,
    Distance,
    Graph,
    Graphs,
    InputSpec,
    Provenance,
    Tensor,
    Tiles,
)
from app.bundle.regions import PEAKS
from app.bundle.scoring import threshold_at
from app.bundle.sets import arrays_of
from app.bundle.store import save
from app.main import create_app
from app.serving.connection import connection_factory
from app.settings import Settings

ROOT = Path(__file__).parent.parent
PACKAGE_PARENT = Path(app.__file__).parents[1]
LABELS = ("cat", "dog", "owl")
LATENT = 5
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def spec(height: int = 6, width: int = 4, channels: int = 1, **changes: Any) -> InputSpec:
    fields = {
        "height": height,
        "width": width,
        "channels": channels,
        "resize": "stretch",
        "filter": "bilinear",
        "background": "black",
        "orientation": "apply",
        "sixteen_bit": "high_byte",
        "palette": "expand",
        "cmyk": "convert",
        "animation": "first_frame",
        "jpeg": "reduced",
    }
    return InputSpec(**{**fields, **changes})


def tiled_spec(
    side: int = 64, overlap: int = 32, scale: float = 1.0, largest: float = 0.05, **changes: Any
) -> InputSpec:
    tiles = Tiles(overlap=overlap, scale=scale, largest=largest)
    return spec(side, side, **{"tiles": tiles, **changes})


SPECS = st.builds(
    spec,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    resize=st.sampled_from(["stretch", "pad", "crop"]),
    filter=st.sampled_from(["box", "bilinear", "bicubic", "lanczos"]),
    background=st.sampled_from(["black", "white"]),
    padding=st.sampled_from(["background", "edge"]),
)


def onnx_file(
    nodes: list[Any], taken: Tensor, given: Tensor | Sequence[Tensor], weights: dict[str, np.ndarray]
) -> bytes:
    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}

    def value(tensor: Tensor) -> Any:
        return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], ["batch", *tensor.shape[1:]])

    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    outputs = [given] if isinstance(given, Tensor) else given
    graph = helper.make_graph(nodes, "tiny", [value(taken)], [value(each) for each in outputs], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny(
    shape: InputSpec | None = None,
    *,
    head: bool = True,
    decoder: bool = True,
    anomaly: bool = True,
    variational: bool = False,
    patches: bool = False,
    index: bool = False,
    thresholds: tuple[float, ...] | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(fields, files) for `save`: linear encoder, linear head, linear decoder with a sigmoid.

    With `patches` the anomaly score is the distance of pixels from a memory of dark ones. With tiles it is that of
    places of 8 × 8 pixels, and the bundle has no other part. With `thresholds` its labels are independent. With `index`
    it has 40 examples, drawn at random.
    """
    shape = shape or spec()
    tiled = shape.tiles is not None
    if tiled:
        head, decoder, patches = False, False, True
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape.shape))
    image = Tensor(name="image", dtype="uint8", shape=(-1, *shape.shape))
    embedding = Tensor(name="embedding", dtype="float32", shape=(-1, LATENT))
    logits = Tensor(name="logits", dtype="float32", shape=(-1, len(LABELS)))
    reconstruction = Tensor(name="reconstruction", dtype="float32", shape=image.shape)
    weights = {
        name: rng.normal(size=dims).astype(np.float32)
        for name, dims in (("into", (size, LATENT)), ("label", (LATENT, len(LABELS))), ("back", (LATENT, size)))
    }
    pitch = 8 if tiled else 1
    places = shape.channels, shape.height // pitch, shape.width // pitch
    pixels = Tensor(name=PATCH_FEATURES, dtype="float32", shape=(-1, *places))
    by_channel = "by_channel" if tiled else pixels.name
    encoded = [embedding, pixels] if patches else [embedding]
    files = {
        "encoder.onnx": onnx_file(
            [
                helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
                helper.make_node("Div", ["float", "full"], ["unit"]),
                helper.make_node("Flatten", ["unit"], ["flat"]),
                helper.make_node("MatMul", ["flat", "into"], ["embedding"]),
                *([helper.make_node("Transpose", ["unit"], [by_channel], perm=[0, 3, 1, 2])] if patches else []),
                *(
                    [
                        helper.make_node(
                            "AveragePool", [by_channel], [pixels.name], kernel_shape=[pitch] * 2, strides=[pitch] * 2
                        )
                    ]
                    if tiled
                    else []
                ),
            ],
            image,
            encoded,
            {"into": weights["into"], "full": np.float32(255)},
        )
    }
    graphs: dict[str, Graph | None] = {
        "encoder": Graph(file="encoder.onnx", input=image, outputs=tuple(encoded)),
        "decoder": None,
        "head": None,
        "explain": None,
    }
    if head:
        files["head.onnx"] = onnx_file(
            [helper.make_node("MatMul", ["embedding", "label"], ["logits"])],
            embedding,
            logits,
            {"label": weights["label"]},
        )
        graphs["head"] = Graph(file="head.onnx", input=embedding, outputs=(logits,))
    if decoder:
        files["decoder.onnx"] = onnx_file(
            [
                helper.make_node("MatMul", ["embedding", "back"], ["flat"]),
                helper.make_node("Sigmoid", ["flat"], ["unit"]),
                helper.make_node("Reshape", ["unit", "shape"], ["reconstruction"]),
            ],
            embedding,
            reconstruction,
            {"back": weights["back"], "shape": np.array([-1, *shape.shape])},
        )
        graphs["decoder"] = Graph(file="decoder.onnx", input=embedding, outputs=(reconstruction,))
    calibration = None
    if patches:
        graphs["patches"], files["patches.onnx"] = tiny_patches(pixels)
    if anomaly and (decoder or patches):
        calibration, files["reference.npz"] = tiny_anomaly(rng, patches)
        if tiled:
            calibration = calibration.model_copy(update={"distances": calibration.distances[:1]})
    if index:
        files[INDEX_FILE] = npz_bytes(tiny_index())
    fields = {
        "title": "a tiny bundle",
        "input": shape,
        "latent_size": LATENT,
        "variational": variational,
        "feature_maps": (),
        "graphs": Graphs(**graphs),
        "classifier": Classifier(labels=LABELS, temperature=1.0, thresholds=thresholds) if head else None,
        "anomaly": calibration,
        "reference": "reference.npz" if calibration else None,
        "index": INDEX_FILE if index else None,
        "metrics": (),
        "provenance": Provenance(
            recipe="{}",
            seed=seed,
            source="nothing",
            target="nothing",
            data={},
            created="2026-01-01T00:00:00+00:00",
            commit="unknown",
            versions={},
            opset=18,
        ),
    }
    return fields, files


def tiny_patches(pixels: Tensor) -> tuple[Graph, bytes]:
    """The distance of each pixel's first channel from 0 or 0.25, whichever is nearer; an image's is the largest."""
    distances = Tensor(name=ANOMALY_MAP, dtype="float32", shape=(-1, *pixels.shape[2:]))
    distance = Tensor(name=PATCH_DISTANCE, dtype="float32", shape=(-1, 1))
    nodes = [
        helper.make_node("Slice", [pixels.name, "start", "end", "axis"], ["first"]),
        helper.make_node("Sub", ["first", "remembered"], ["apart"]),
        helper.make_node("Abs", ["apart"], ["all"]),
        helper.make_node("ReduceMin", ["all", "axis"], [distances.name], keepdims=0),
        helper.make_node("Flatten", [distances.name], ["flat"]),
        helper.make_node("ReduceMax", ["flat", "axis"], [distance.name], keepdims=1),
    ]
    remembered = np.array([0, 0.25], np.float32).reshape(1, 2, 1, 1)
    weights = {"start": np.array([0]), "end": np.array([1]), "axis": np.array([1]), "remembered": remembered}
    graph = Graph(file="patches.onnx", input=pixels, outputs=(distances, distance))
    return graph, onnx_file(nodes, pixels, graph.outputs, weights)


def tiny_index(count: int = 40, seed: int = 1) -> dict[str, np.ndarray]:
    """Every second example has no label; thumbnails are of one pixel."""
    rng = np.random.default_rng(seed)
    dot = thumbnail_of(np.full((1, 1, 1), 9, np.uint8), 1, 70)
    return {
        "mean": np.zeros(LATENT, np.float32),
        "basis": np.eye(LATENT, dtype=np.float16),
        "codes": rng.normal(size=(count, LATENT)).astype(np.float16),
        "labels": np.where(np.arange(count) % 2, -1, np.arange(count) % len(LABELS)),
        "label_names": text_of(list(LABELS)),
        "files": text_of([f"folder/{number}.png" for number in range(count)]),
        "thumbnails": np.frombuffer(dot * count, np.uint8),
        "thumbnail_sizes": np.full(count, len(dot)),
    }


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def tiny_anomaly(rng: np.random.Generator, patches: bool = False) -> tuple[Anomaly, bytes]:
    scores = np.sort(rng.normal(size=199))
    arrays = {
        "embedding.mean": np.zeros(LATENT, np.float32),
        "embedding.weight": np.ones(LATENT, np.float32),
        "embedding.basis": np.eye(LATENT, dtype=np.float32),
        "embedding.spread": np.ones(LATENT, np.float32),
        "calibration_scores": scores,
    }
    if patches:
        arrays[PEAKS] = np.linspace(0.01, 0.2, 199).astype(np.float32)
    distances = (
        Distance(measure="reconstruction", takes="pixels", mean=0.1, std=0.1),
        Distance(measure="mahalanobis", takes="embedding", mean=1.0, std=1.0),
    )
    if patches:
        distances = Distance(measure="patches", takes="patches", mean=0.1, std=0.05), distances[1]
    anomaly = Anomaly(
        distances=distances,
        false_alarm_rate=0.05,
        threshold=threshold_at(scores, 0.05),
        calibrated_on=len(scores),
        quantiles={"0.5": 0.0},
    )
    return anomaly, npz_bytes(arrays)


def save_tiny(models: Path, name: str = "tiny", version: int | None = None, **changes: Any) -> Path:
    fields, files = tiny(**changes)
    return save(models, name, fields, files, version)


@contextlib.contextmanager
def serving(settings: Settings, app: FastAPI | None = None) -> Iterator[httpx.Client]:
    """The service on a real socket, in a thread of this process; a client whose paths begin at its root."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = app or create_app(settings)
        protocol: Any = "auto"
        if isinstance(
            getattr(app.state, "fast_path", None), FastPath
        ):  # the service, and no application of a test's own
            limits = settings.head_timeout_s, settings.keep_alive_s, settings.max_connections
            protocol = connection_factory(app.state.fast_path, *limits)
        config = uvicorn.Config(app, http=protocol, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.005)
            port = listener.getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    return {**kept, "PYTHONPATH": str(PACKAGE_PARENT), "GRAFT_TUNE": "off", **settings}


@contextlib.contextmanager
def running(
    seconds: float = 60, ready: int = 200, **settings: str
) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """(process, address, seconds until it was ready); it is killed after so many seconds

    `ready` is what its /readyz answers when it has said where it is.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--port", "0"],
        cwd=ROOT,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(seconds, process.kill)  # a silent child must not hang the suite
    watchdog.start()
    try:
        first = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", first)
        assert found, first + (process.stderr.read() if process.stderr else "")
        assert httpx.get(f"{found[0]}/readyz").status_code == ready
        yield process, found[0], time.monotonic() - start
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate(timeout=20)


def stopped(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


def eventually(holds: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def assert_problem(answer: httpx.Response, status: int, kind: str, message: str = "") -> dict[str, Any]:
    """The one error shape: every failure outside /v2 is checked here."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) - {"index"} == {"type", "title", "status", "detail", "request_id"}
    assert body["type"] == f"urn:graft:problem:{kind}"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert message in body["detail"]
    for leak in ("Traceback", "/home", "site-packages", str(ROOT), "object at 0x"):
        assert leak not in answer.text
    return body


def assert_error(answer: httpx.Response, status: int, message: str = "") -> str:
    """The shape of every failure under /v2, as the Open Inference Protocol has it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error: str = body["error"]
    assert message in error
    for leak in ("Traceback", "/home", "site-packages", str(ROOT), "object at 0x"):
        assert leak not in error
    return error


def idx(array: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def draw_named(folder: Path, per_class: int) -> Path:
    """MNIST and Fashion-MNIST as GRAFT_DATA has them, with ten drawn kinds in place of theirs: garments, turned too."""
    rng = np.random.default_rng(0)
    kinds = np.stack([np.rot90(garment(kind), turns) for turns in range(3) for kind in GARMENTS])
    for name in ("mnist", "fashion-mnist"):
        (folder / name).mkdir(parents=True)
        for stem, count in (("train", 10 * per_class), ("t10k", 50)):
            labels = np.arange(count, dtype=np.uint8) % 10
            images = (kinds[labels] * rng.uniform(0.5, 1, (count, 1, 1))).astype(np.uint8)
            (folder / name / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
            (folder / name / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


class Brightness:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, level: float) -> float:
        return min(255, level * self.factor)


def draw_folder(folder: Path, per_class: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for kind in GARMENTS:
        (folder / kind).mkdir(parents=True)
        for number in range(per_class):
            image = garment(kind, int(rng.integers(24, 40)))
            shifted = ImageChops.offset(image, *(int(v) for v in rng.integers(-3, 4, 2)))
            shifted.point(Brightness(rng.uniform(0.5, 1.2))).save(folder / kind / f"{number}.png")
    return folder


def read_metrics(exposition: str | bytes) -> Samples:
    """(name, labels) → value"""
    text = exposition if isinstance(exposition, str) else exposition.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "a series that is there twice"
    return found


def metric_value(samples: Samples, name: str, **labels: object) -> float | None:
    return samples.get((name, frozenset((key, str(v)) for key, v in labels.items())))


def draw_inspection(folder: Path, sound: int = 12, defects: int = 4, side: int = 32) -> Path:
    """train/good, test/good, test/dot and test/line, and ground_truth: drawn surfaces, and what lies on them.

    Of test/good there are as many as of each kind of defect.
    """
    rng = np.random.default_rng(0)

    def surface() -> np.ndarray:
        return rng.integers(90, 130, (side, side), dtype=np.uint8)

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for part, count in (("train", sound), ("test", defects)):
        for number in range(count):
            write(folder / part / "good" / f"{number:03}.png", surface())
    for kind in ("dot", "line"):
        for number in range(defects):
            where = np.zeros((side, side), bool)
            row, column = (int(at) for at in rng.integers(2, side - 8, 2))
            where[row : row + 5, column : column + 5] = kind == "dot"
            where[row, 2 : side - 2] |= kind == "line"
            write(folder / "test" / kind / f"{number:03}.png", np.where(where, 255, surface()).astype(np.uint8))
            write(folder / "ground_truth" / kind / f"{number:03}_mask.png", where.astype(np.uint8) * 255)
    return folder


def with_sets(files: dict[str, bytes], images: int = 199, seed: int = 0) -> dict[str, bytes]:
    """The files of `tiny` with calibration images for prediction sets: their labels are drawn by a tiny model's own
    probabilities, so that it is right about how sure it is."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.ones(len(LABELS)) / 2, size=images)
    labels = np.array([rng.choice(len(LABELS), p=row) for row in rows])
    with np.load(io.BytesIO(files["reference.npz"])) as stored:
        arrays = {**stored, **arrays_of(rows, labels)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return {**files, "reference.npz": buffer.getvalue()}
