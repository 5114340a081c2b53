"""A served bundle that cuts pictures into tiles, on a real socket."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support import assert_error, assert_problem, save_tiny, serving, spec, tiled_spec

from app.bundle import load
from app.bundle.encode import png
from app.settings import Settings

WIDTH, HEIGHT = 333, 150  # of 5 × 2 tiles and more
BLOCK = (slice(64, 80), slice(240, 256))


def drawn(width: int = WIDTH, height: int = HEIGHT, block: tuple[slice, slice] | None = BLOCK) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    if block is not None:
        pixels[block] = 255
    return pixels


def file(pixels: np.ndarray) -> bytes:
    return png(Image.fromarray(pixels))


ODD, SMALL = file(drawn()), file(drawn(20, 9, None))
INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiled")
    save_tiny(folder, shape=tiled_spec())
    save_tiny(folder, name="whole", shape=spec(64, 64), patches=True)
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=models, default_model="tiny")) as client:
        yield client


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


def as_files(*files: bytes) -> list[tuple[str, bytes]]:
    return [("image", each) for each in files]


def encoded(*files: bytes, outputs: list[str] | None = None) -> dict[str, Any]:
    data = [base64.b64encode(each).decode() for each in files]
    body: dict[str, Any] = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}]}
    return body if outputs is None else body | {"outputs": [{"name": name} for name in outputs]}


def test_a_picture_has_one_score_one_map_and_regions_in_its_own_pixels(client: httpx.Client, models: Path) -> None:
    [found] = results(client.post("/v1/anomaly?regions=true&heatmap=true", files=as_files(ODD)))
    bundle = load(models / "tiny/1")
    [alone] = bundle.anomaly(bundle.preprocess(ODD)[None])
    assert (found["score"], found["p_value"]) == pytest.approx((alone.score, alone.p_value))
    assert found["distances"]["patches"] == pytest.approx((4 * 0.75) / 4, abs=0.3)
    [region] = found["regions"]
    assert region["box"] == pytest.approx([240, 64, 256, 80], abs=8)
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["heatmap"]))))
    assert heat.shape == (-(-HEIGHT // 4), -(-WIDTH // 4))
    assert heat[17:19, 61:63].min() > 180
    answer = client.post("/v1/anomaly", files=as_files(ODD), headers={"accept": "image/png"})
    assert answer.content == base64.b64decode(found["heatmap"])
    answer = client.post("/v1/anomaly", files=as_files(ODD), headers={"accept": "application/x-npy"})
    map_ = np.load(io.BytesIO(answer.content))
    assert map_.shape == (1, 19, 42)
    assert map_[0, 8:10, 30:32].min() == pytest.approx(0.75)
    [whole] = results(client.post("/v1/predict?regions=true&heatmap=true", files=as_files(ODD)))
    assert (whole["regions"], whole["heatmap"]) == (found["regions"], found["heatmap"])
    assert len(whole["embedding"]) == 5


def test_pictures_of_several_sizes_are_answered_in_order(client: httpx.Client) -> None:
    """Also one that is smaller than a tile, plain enough for the fast path, and one on its side."""
    sideways, exif = Image.fromarray(drawn()).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    sideways.save(buffer, "PNG", exif=exif)
    sent = as_files(ODD, SMALL, buffer.getvalue())
    odd, small, turned = results(client.post("/v1/anomaly?regions=true", files=sent))
    assert (odd["score"], odd["regions"]) == (turned["score"], turned["regions"])
    assert small["regions"] == []
    [alone] = results(client.post("/v1/anomaly", files=as_files(SMALL)))
    assert alone["score"] == small["score"] < odd["score"]
    answer = client.post("/v1/anomaly", files=sent, headers={"accept": "application/x-npy"})
    assert_problem(answer, 406, "not-acceptable")
    [first, second] = results(client.post("/v1/encode", files=as_files(ODD, SMALL)))
    assert first["embedding"] != second["embedding"]


def test_the_map_of_a_picture_of_one_tile_is_that_of_a_bundle_without_tiles(client: httpx.Client) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    maps = []
    for model in ("tiny", "whole"):
        answer = client.post(
            f"/v1/anomaly?model={model}", files=as_files(file(pixels)), headers={"accept": "application/x-npy"}
        )
        maps.append(np.load(io.BytesIO(answer.content)))
    tiled, whole = maps
    blocks = pixels.reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(tiled[0], np.abs(blocks - 0.25), atol=1e-5)
    assert whole.shape == (1, 64, 64)


def test_what_reads_one_image_is_refused_with_what_there_is(client: httpx.Client) -> None:
    for path in ("classify", "reconstruct"):
        answer = client.post(f"/v1/{path}", files=as_files(ODD))
        assert_problem(answer, 409, "operation-unavailable", "it can: encode, anomaly, predict, regions")
    answer = client.post("/v1/predict?explain=true", files=as_files(ODD))
    assert_problem(answer, 409, "operation-unavailable", "it can: encode, anomaly, predict, regions")


def test_the_protocol_takes_files_and_gives_the_map_of_one_picture(client: httpx.Client) -> None:
    described = client.get("/v2/models/tiny").json()
    assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    shapes = {each["name"]: each["shape"] for each in described["outputs"]}
    assert shapes == {"embedding": [-1, 5], "anomaly_score": [-1], "p_value": [-1], "anomaly_map": [-1, -1, -1]}
    assert client.get("/v2/models/tiny/config").json()["input"][0]["data_type"] == "TYPE_STRING"
    one = client.post(INFER, json=encoded(ODD)).json()["outputs"]
    assert [each["name"] for each in one] == list(shapes)
    assert one[-1]["shape"] == [1, 19, 42]
    [score] = results(client.post("/v1/anomaly", files=as_files(ODD)))
    assert one[1]["data"] == [pytest.approx(score["score"])]
    several = client.post(INFER, json=encoded(ODD, SMALL)).json()["outputs"]
    assert [each["name"] for each in several] == ["embedding", "anomaly_score", "p_value"]
    answer = client.post(INFER, json=encoded(ODD, SMALL, outputs=["anomaly_map"]))
    assert_error(answer, 400, "send one picture in a request")


def test_the_protocol_refuses_pixels(client: httpx.Client) -> None:
    """As JSON, as a binary tensor, and as a body of nothing else, all small enough for the fast path."""
    pixels = np.zeros(64 * 64, np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 1]}
    answers = [client.post(INFER, json={"inputs": [tensor | {"data": pixels.tolist()}]})]
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": pixels.size}}]}).encode()
    length = {"inference-header-content-length": str(len(head))}
    answers.append(client.post(INFER, content=head + pixels.tobytes(), headers=length))
    length = {"inference-header-content-length": "0"}
    answers.append(client.post(INFER, content=pixels.tobytes(), headers=length))
    for answer in answers:
        assert_error(answer, 400, "send BYTES with whole files")
    assert client.post("/v2/models/whole/infer", content=pixels.tobytes(), headers=length).status_code == 200


@pytest.mark.parametrize(
    ("settings", "width", "height", "status", "kind", "message"),
    [
        ({"max_pixels": 40_000}, 333, 150, 413, "too-many-pixels", "at most 40,000 are allowed"),
        ({"max_queue": 30, "max_images": 16}, 512, 300, 413, "too-many-pixels", "(MAX_QUEUE): send fewer or smaller"),
        ({"decode_mb": 30}, 3000, 2700, 413, "too-many-pixels", "(DECODE_MB): make it smaller"),
    ],
)
def test_a_picture_that_costs_too_much_is_refused_before_it_is_decoded(
    models: Path, settings: dict[str, Any], width: int, height: int, status: int, kind: str, message: str
) -> None:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "JPEG")
    cut_off = buffer.getvalue()[: buffer.getvalue().index(b"\xff\xda") + 12]  # its header is sound, its pixels are not
    with serving(Settings(models=models, default_model="tiny", **settings)) as client:
        assert_problem(client.post("/v1/anomaly", files=as_files(cut_off)), status, kind, message)
        assert client.post("/v1/anomaly", files=as_files(SMALL)).status_code == 200


def test_of_several_pictures_the_broken_one_is_named(client: httpx.Client) -> None:
    answer = client.post("/v1/anomaly", files=as_files(ODD, ODD[:-60]))
    assert assert_problem(answer, 422, "broken-image")["index"] == 1
