"""POST /v1/decode and /v1/generate, over a real socket."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support import LATENT, ROOT, assert_problem, save_tiny, serving

from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.settings import Settings

FILES = [png(garment(kind)) for kind in GARMENTS][:4]
NPY = {"content-type": "application/x-npy"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    models = tmp_path_factory.mktemp("models")
    save_tiny(models)
    save_tiny(models, "vae", variational=True)
    save_tiny(models, "bare", decoder=False)
    settings = Settings(models=models, default_model="tiny", max_images=8, max_body_mb=1)
    with serving(settings) as client:
        yield client


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def form(files: list[bytes]) -> list[tuple[str, bytes]]:
    return [("image", file) for file in files]


@pytest.mark.parametrize("as_npy", [True, False])
def test_encode_then_decode_is_reconstruct(client: httpx.Client, as_npy: bool) -> None:
    drawn = [result["image"] for result in client.post("/v1/reconstruct", files=form(FILES)).json()["results"]]
    if as_npy:
        codes = client.post("/v1/encode", files=form(FILES), headers={"accept": "application/x-npy"})
        decoded = client.post("/v1/decode", content=codes.content, headers=NPY)
    else:
        results = client.post("/v1/encode", files=form(FILES)).json()["results"]
        decoded = client.post("/v1/decode", json={"embeddings": [result["embedding"] for result in results]})
    assert [result["image"] for result in decoded.json()["results"]] == drawn


def test_the_forms_of_an_answer_agree(client: httpx.Client) -> None:
    codes = np.random.default_rng(0).normal(size=(1, LATENT)).astype(np.float32)
    as_json = client.post("/v1/decode", content=npy(codes), headers=NPY).json()["results"][0]["image"]
    as_png = client.post("/v1/decode", content=npy(codes), headers=NPY | {"accept": "image/png"})
    as_npy = client.post("/v1/decode", content=npy(codes), headers=NPY | {"accept": "application/x-npy"})
    assert base64.b64decode(as_json) == as_png.content
    images = np.load(io.BytesIO(as_npy.content))
    assert images.shape == (1, 6, 4, 1)
    assert np.array_equal(np.rint(images[0, :, :, 0] * 255), pixels(as_json))


def test_a_seed_draws_the_same_again(client: httpx.Client) -> None:
    first, again = (client.post("/v1/generate?model=vae&n=3&seed=7").json() for _ in range(2))
    assert first == again
    assert first["seed"] == 7
    assert len({result["image"] for result in first["results"]}) == 3
    unseeded = client.post("/v1/generate?model=vae").json()
    assert client.post(f"/v1/generate?model=vae&seed={unseeded['seed']}").json() == unseeded
    drawn = client.post("/v1/decode?model=vae", json={"embeddings": [r["embedding"] for r in first["results"]]}).json()
    assert [r["image"] for r in drawn["results"]] == [r["image"] for r in first["results"]]


def test_who_has_no_distribution_or_no_decoder_says_so(client: httpx.Client) -> None:
    body = assert_problem(client.post("/v1/generate"), 409, "operation-unavailable")
    assert "tiny@1 has no variational code" in body["detail"]
    one = {"embeddings": [[0.0] * LATENT]}
    body = assert_problem(client.post("/v1/decode?model=bare", json=one), 409, "operation-unavailable")
    assert "it can: classify, encode, predict" in body["detail"]


GOOD = [0.0] * LATENT


@pytest.mark.parametrize(
    ("codes", "status", "output"),
    [
        ({}, 400, "without other fields"),
        ({"embeddings": []}, 400, "is expected"),
        ({"embeddings": [[]]}, 400, "is expected"),
        ({"embeddings": GOOD}, 400, "is expected"),
        ({"embeddings": [GOOD, GOOD[1:]]}, 400, "each as long as the next"),
        ({"embeddings": [["a"] * LATENT]}, 400, "is expected"),
        ({"embeddings": [[True] * LATENT]}, 400, "is expected"),
        ({"embeddings": [[None] * LATENT]}, 400, "is expected"),
        ({"embeddings": [[1e39, *GOOD[1:]]]}, 400, "finite"),
        ({"embeddings": [GOOD], "more": 1}, 400, "without other fields"),
        ({"embeddings": [GOOD[1:]]}, 400, f"have {LATENT}"),
        ({"embeddings": [GOOD] * 9}, 413, "at most 8"),
        ({"embeddings": [[1]] * 30_000}, 413, "more values"),
    ],
)
def test_codes_that_are_none_are_refused(client: httpx.Client, codes: Any, status: int, output: str) -> None:
    answer = client.post("/v1/decode", json=codes)
    kind = "too-many-images" if status == 413 else "malformed-request"
    assert output in assert_problem(answer, status, kind)["detail"]


def test_codes_of_which_the_decoder_makes_no_numbers_are_refused() -> None:
    with serving(Settings(models=ROOT / "models", default_model="fashion-mnist-seed")) as client:
        size = client.get("/v1/models/fashion-mnist-seed").json()["manifest"]["latent_size"]
        answer = client.post("/v1/decode", json={"embeddings": [[0.0] * size, [3e38] * size]})
        assert_problem(answer, 400, "malformed-request", "so far from those of images")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not npy",
        npy(np.zeros((2, LATENT), np.float32))[:-3],
        npy(np.zeros(LATENT, np.float32)),
        npy(np.zeros((0, LATENT), np.float32)),
        npy(np.full((1, LATENT), np.nan)),
        npy(np.zeros((1, LATENT), complex)),
        npy(np.array([["x"] * LATENT])),
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 5), }".ljust(128)
        + b"\n",
    ],
)
def test_arrays_that_are_none_are_refused(client: httpx.Client, body: bytes) -> None:
    assert_problem(client.post("/v1/decode", content=body, headers=NPY), 400, "malformed-request")


def test_a_pickle_is_never_opened(client: httpx.Client, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([[Trap()]], dtype=object), allow_pickle=True)
    assert_problem(client.post("/v1/decode", content=buffer.getvalue(), headers=NPY), 400, "malformed-request")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("query", ["n=0", "n=x", "seed=-1", f"seed={2**63}", "n=9"])
def test_draws_that_cannot_be_are_refused(client: httpx.Client, query: str) -> None:
    status, kind = (413, "too-many-images") if query == "n=9" else (400, "malformed-request")
    assert_problem(client.post(f"/v1/generate?model=vae&{query}"), status, kind)


def test_other_bodies_are_not_read(client: httpx.Client) -> None:
    answer = client.post("/v1/decode", content=b"x", headers={"content-type": "image/png"})
    assert "application/json or application/x-npy" in assert_problem(answer, 415, "unsupported-media-type")["detail"]
    large = client.post("/v1/decode", content=b"x" * 1_100_000, headers=NPY)
    assert_problem(large, 413, "body-too-large")
