"""The Open Inference Protocol's own clients, as they are installed: they find all that they ask for."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from support import LABELS, LATENT, save_tiny, serving
from tritonclient.utils import InferenceServerException

from app.bundle import load
from app.bundle.drawings import golden_files
from app.settings import Settings

FILES = golden_files()[:3]
KSERVE = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-clients") / "bin/python"
OUTPUTS = ["embedding", "reconstruction", "logits", "probabilities", "anomaly_score", "p_value"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Two versions, of different weights; calls may load and unload."""
    models = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        save_tiny(models, seed=seed)
    with serving(Settings(models=models, model_control="explicit", max_images=8, max_body_mb=1)) as client:
        yield client


@pytest.fixture(scope="module")
def expected(service: httpx.Client) -> Callable[[int], dict[str, np.ndarray]]:
    """What /v1 says of each file, alone."""

    def of(version: int) -> dict[str, np.ndarray]:
        found: dict[str, list[Any]] = {"embedding": [], "probabilities": [], "anomaly_score": []}
        for file in FILES:
            answer = service.post("/v1/predict", params={"model": f"tiny@{version}"}, files={"image": file})
            [result] = answer.json()["results"]
            found["embedding"].append(np.array(result["embedding"], np.float32))
            found["probabilities"].append([result["probabilities"][label] for label in LABELS])
            found["anomaly_score"].append(result["score"])
        return {name: np.array(values) for name, values in found.items()}

    return of


@pytest.fixture(scope="module")
def pixels(service: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    bundle = load(save_tiny(tmp_path_factory.mktemp("same")))
    return np.stack([bundle.preprocess(file) for file in FILES])


def image(values: np.ndarray | list[bytes], binary_data: bool = True) -> Any:
    array = values if isinstance(values, np.ndarray) else np.array(values, np.object_)
    given = triton.InferInput("image", list(array.shape), "UINT8" if array.dtype == np.uint8 else "BYTES")
    return given.set_data_from_numpy(array, binary_data=binary_data)


def wanted(name: str, **options: Any) -> Any:
    return triton.InferRequestedOutput(name, **options)


def assert_agrees(result: Any, expected: dict[str, np.ndarray], row: int) -> None:
    """Of one row: a batch may round otherwise than its rows alone."""
    for name, values in expected.items():
        found = result.as_numpy(name)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values[row : row + 1], err_msg=name)


@pytest.fixture
def client(service: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.base_url.netloc.decode()) as client:
        yield client


def test_triton_finds_the_server_and_its_models(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "3")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "graft"
    for version in ("", "2"):
        metadata = client.get_model_metadata("tiny", version)
        assert metadata["versions"] == ["1", "2"]
        assert [output["name"] for output in metadata["outputs"]] == OUTPUTS
        assert client.get_model_config("tiny", version)["max_batch_size"] == 8
    [stats] = client.get_inference_statistics("tiny", "1")["model_stats"]
    assert stats["version"] == "1"


@pytest.mark.parametrize("binary", [True, False])
def test_triton_infers_one_and_many(
    client: triton.InferenceServerClient, expected: Any, pixels: np.ndarray, binary: bool
) -> None:
    for version in (1, 2):
        answers = expected(version)
        outputs = [wanted(name, binary_data=binary) for name in answers]
        for row in range(len(FILES)):
            given = image(pixels[row : row + 1], binary)
            found = client.infer("tiny", [given], str(version), outputs=outputs, request_id="7")
            assert_agrees(found, answers, row)
            assert found.get_response()["id"] == "7"
            assert found.get_response()["model_version"] == str(version)
            assert_agrees(client.infer("tiny", [image([FILES[row]])], str(version), outputs=outputs), answers, row)
    together = client.infer("tiny", [image(FILES)])
    for name, values in expected(2).items():
        np.testing.assert_allclose(together.as_numpy(name), values, rtol=1e-5, err_msg=name)
    assert [output["name"] for output in together.get_response()["outputs"]] == OUTPUTS
    same = client.infer("tiny", [image(pixels, binary)])
    for name in OUTPUTS:
        np.testing.assert_array_equal(same.as_numpy(name), together.as_numpy(name), err_msg=name)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_may_compress(client: triton.InferenceServerClient, expected: Any, algorithm: str) -> None:
    packed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    outputs = [wanted(name) for name in expected(2)]
    assert_agrees(client.infer("tiny", [image(FILES[:1])], outputs=outputs, **packed), expected(2), 0)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_asks_for_the_best_classes(client: triton.InferenceServerClient, expected: Any, binary: bool) -> None:
    [chances] = expected(2)["probabilities"][:1]
    found = client.infer(
        "tiny", [image(FILES[:1])], outputs=[wanted("probabilities", binary_data=binary, class_count=2)]
    )
    best = [f"{chances[i]}:{i}:{LABELS[i]}" for i in np.argsort(-chances)[:2]]
    [answer_text] = found.as_numpy("probabilities")
    assert [text.decode() if isinstance(text, bytes) else text for text in answer_text] == best


def test_triton_reaches_the_decoder(client: triton.InferenceServerClient) -> None:
    whole = client.infer("tiny", [image(FILES[:1])])
    codes = triton.InferInput("embedding", [1, LATENT], "FP32").set_data_from_numpy(whole.as_numpy("embedding"))
    drawn = client.infer("tiny", [codes], outputs=[wanted("reconstruction")])
    np.testing.assert_array_equal(drawn.as_numpy("reconstruction"), whole.as_numpy("reconstruction"))


def test_triton_understands_what_is_refused(client: triton.InferenceServerClient, pixels: np.ndarray) -> None:
    for ask, status, expected_text in (
        (lambda: client.infer("other", [image(FILES)]), "404", "there is no model 'other'"),
        (lambda: client.infer("tiny", [image(FILES)], "9"), "404", "no version '9'"),
        (lambda: client.infer("tiny", [image(FILES * 3)]), "413", "at most 8"),
        (lambda: client.infer("tiny", [image(FILES)], outputs=[wanted("x")]), "400", "has no 'x'"),
        (lambda: client.infer("tiny", [image(pixels[:, :2])]), "400", "[n, 6, 4, 1] is expected"),
        (lambda: client.infer("tiny", [image([b"none"])]), "415", "not"),
        (lambda: client.infer("tiny", [image([bytes(1_000_001)])]), "413", "at most 1,000,000"),
        (lambda: client.get_model_metadata("other"), "404", "there is no model 'other'"),
        (lambda: client.get_system_shared_memory_status(), "404", "nothing at"),
        (lambda: client.unload_model("other"), "404", "there is no model 'other'"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            ask()
        assert refused.value.status() == status
        assert expected_text in refused.value.message()


def test_triton_lists_loads_and_unloads(client: triton.InferenceServerClient) -> None:
    versions = [{"name": "tiny", "version": v, "state": "READY", "reason": ""} for v in ("1", "2")]
    assert client.get_model_repository_index() == versions
    client.unload_model("tiny")
    assert not client.is_model_ready("tiny")
    assert {each["state"] for each in client.get_model_repository_index()} <= {"UNAVAILABLE", "UNLOADING"}
    client.load_model("tiny")
    assert client.infer("tiny", [image(FILES)]).get_response()["model_version"] == "2"
    assert client.is_model_ready("tiny")


def test_tritons_asynchronous_client_does_the_same(service: httpx.Client, expected: Any, pixels: np.ndarray) -> None:
    service.post("/v2/repository/models/tiny/load", json={"parameters": {"version": "1"}}).raise_for_status()
    answers = expected(1)

    async def all_of_it() -> None:
        async with triton_aio.InferenceServerClient(service.base_url.netloc.decode()) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("tiny", "1")
            assert (await client.get_model_metadata("tiny"))["name"] == "tiny"
            assert (await client.get_model_config("tiny"))["name"] == "tiny"
            assert len(await client.get_model_repository_index()) == 2
            outputs = [wanted(name) for name in answers]
            for row in range(len(FILES)):
                for given in (image(pixels[row : row + 1]), image([FILES[row]]), image(pixels[row : row + 1], False)):
                    assert_agrees(await client.infer("tiny", [given], outputs=outputs), answers, row)
            many = await asyncio.gather(*(client.infer("tiny", [image(FILES)], request_id=str(i)) for i in range(20)))
            assert [each.get_response()["id"] for each in many] == [str(i) for i in range(20)]
            await client.unload_model("tiny")
            assert not await client.is_model_ready("tiny")
            await client.load_model("tiny")
            with pytest.raises(InferenceServerException, match="there is no model 'other'"):
                await client.infer("other", [image(FILES)])

    asyncio.run(all_of_it())


def test_kserves_client_does_the_same(service: httpx.Client, pixels: np.ndarray, tmp_path: Path) -> None:
    if not KSERVE.exists():
        pytest.skip("kserve's versions clash with ours; `make clients` gives it an environment of its own")
    np.savez(tmp_path / "given.npz", pixels=pixels, **{f"file{i}": np.frombuffer(f, "u1") for i, f in enumerate(FILES)})
    script = Path(__file__).with_name("kserve_client.py")
    command = [KSERVE, "-W", "ignore", script, service.base_url, tmp_path / "given.npz"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    embeddings = json.loads(done.stdout)
    assert len(embeddings) == 3
    for row in range(len(FILES)):
        [result] = service.post("/v1/encode", files={"image": FILES[row]}).json()["results"]
        assert [way[row] for way in embeddings] == [result["embedding"]] * 3


def test_curl_does_the_same(service: httpx.Client, pixels: np.ndarray, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    (tmp_path / "pixels").write_bytes(pixels[:1].tobytes())
    address = f"{service.base_url}/v2/models/tiny/infer"

    def ask(*arguments: str) -> bytes:
        return subprocess.run([curl, "-sS", *arguments], capture_output=True, check=True, cwd=tmp_path).stdout

    raw = ask("-H", "Inference-Header-Content-Length: 0", "--data-binary", "@pixels", address)
    question = {"inputs": [{"name": "image", "shape": [1, 6, 4, 1], "datatype": "UINT8", "data": pixels[:1].tolist()}]}
    answer_text = json.loads(ask("-d", json.dumps(question), address))  # as form data, says curl
    data = {output["name"]: output["data"] for output in answer_text["outputs"]}
    assert list(data) == OUTPUTS
    assert np.array(data["embedding"], np.float32).tobytes() in raw
    assert json.loads(ask(f"{service.base_url}/v2/models/nobody"))["error"].startswith("there is no model")
