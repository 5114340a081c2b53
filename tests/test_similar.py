"""POST /v1/similar and evidence=true, over a real socket."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support import assert_problem, save_tiny, serving, tiled_spec

from app.bundle import Bundle, load
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.bundle.index import MOST_FOUND
from app.settings import Settings

FILES = [png(garment(kind)) for kind in GARMENTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder, "example", index=True)
    save_tiny(folder, "tiled", shape=tiled_spec(), index=True)
    save_tiny(folder, "without")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=folder)) as client:
        yield client


def expected(bundle: Bundle, file: bytes, count: int) -> list[dict[str, Any]]:
    assert bundle.index is not None
    rows, distances = bundle.index.nearest(bundle.encode(bundle.preprocess(file)[None])["embedding"])
    examples = [bundle.index.example(row) for row in rows[0, :count]]
    pairs = zip(examples, distances[0].tolist(), strict=False)
    found = [{"label": each.label, "file": each.file, "distance": distance} for each, distance in pairs]
    return [{name: value for name, value in each.items() if value is not None} for each in found]


def test_the_nearest_come_first_for_each_image_in_order(client: httpx.Client, folder: Path) -> None:
    bundle = load(folder / "example/1")
    body = client.post("/v1/similar?k=3", files=[("image", file) for file in FILES]).json()
    assert [result["similar"] for result in body["results"]] == [expected(bundle, file, 3) for file in FILES]
    raw = client.post("/v1/similar", content=FILES[0], headers={"content-type": "image/png"}).json()
    assert raw["results"] == [{"similar": expected(bundle, FILES[0], 5)}]
    encoded = client.post("/v1/similar?k=1", json={"images": [base64.b64encode(FILES[1]).decode()]}).json()
    assert encoded["results"] == [{"similar": expected(bundle, FILES[1], 1)}]


def test_thumbnails_come_where_they_are_wanted(client: httpx.Client) -> None:
    [result] = client.post("/v1/similar?k=2&thumbnails=true", files={"image": FILES[0]}).json()["results"]
    assert all(base64.b64decode(each["thumbnail"])[8:12] == b"WEBP" for each in result["similar"])


@pytest.mark.parametrize("operation", ["classify", "encode", "reconstruct", "anomaly", "predict"])
def test_every_operation_names_the_nearest_as_evidence(client: httpx.Client, folder: Path, operation: str) -> None:
    [nearest] = expected(load(folder / "example/1"), FILES[0], 1)
    plain, more = (
        client.post(f"/v1/{operation}{query}", files={"image": FILES[0]}).json()["results"][0]
        for query in ("", "?evidence=true")
    )
    assert more == plain | {"evidence": nearest}


def test_a_picture_in_tiles_has_similar_ones(client: httpx.Client) -> None:
    picture = png(garment("bag").resize((150, 90)))
    [result] = client.post("/v1/similar?model=tiled&k=4", files={"image": picture}).json()["results"]
    distances = [each["distance"] for each in result["similar"]]
    assert len(distances) == 4
    assert (np.diff(distances) >= 0).all()


@pytest.mark.parametrize("path", ["similar?model=without", "classify?model=without&evidence=true"])
def test_a_model_without_an_index_says_so(client: httpx.Client, path: str) -> None:
    answer = client.post(f"/v1/{path}", files={"image": FILES[0]})
    assert_problem(answer, 409, "operation-unavailable", "without@1 has no index of images")


@pytest.mark.parametrize("k", ["0", "-1", "x", str(MOST_FOUND + 1)])
def test_a_number_of_images_that_cannot_be_is_refused(client: httpx.Client, k: str) -> None:
    assert_problem(client.post(f"/v1/similar?k={k}", files={"image": FILES[0]}), 400, "malformed-request", "k")
