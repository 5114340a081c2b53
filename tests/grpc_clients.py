"""Run by tests/test_grpc.py in the environment of `make clients`: the client of triton or kserve against ADDRESS.

With KEY and the file of images GIVEN; prints as JSON the embeddings that each way of asking gets. The two clients
cannot be imported together: both define the protocol's messages.
"""

import asyncio
import json
import queue
import sys
from typing import Any

import numpy as np

which, address, key, given = sys.argv[1:]
if which == "triton":
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio
    from tritonclient.utils import InferenceServerException
else:
    from kserve import InferenceGRPCClient, InferInput, InferRequest

headers = {"authorization": f"Bearer {key}"}
arrays = np.load(given)
pixels = arrays["pixels"]
files = np.array([arrays[f"file{i}"].tobytes() for i in range(len(pixels))], np.object_)
found: list[list[Any]] = []


def wanted() -> list[Any]:
    return [triton.InferRequestedOutput("embedding")]


def image(values: np.ndarray) -> Any:
    tensor = triton.InferInput("image", list(values.shape), "UINT8" if values.dtype == np.uint8 else "BYTES")
    return tensor.set_data_from_numpy(values)


def refused(ask: Any, status: str, message: str) -> None:
    try:
        ask()
    except InferenceServerException as error:
        answer = error.status(), error.message()
    else:
        raise AssertionError(f"{message!r} was not refused")
    assert answer[0] == f"StatusCode.{status}", answer
    assert message in answer[1], answer


def of_triton() -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny", "1", headers=headers)
        refused(lambda: client.is_model_ready("tiny"), "UNAUTHENTICATED", "an API key is required")
        assert client.get_server_metadata(headers=headers).name == "graft"
        metadata = client.get_model_metadata("tiny", headers=headers)
        assert list(metadata.versions) == ["1", "2"]
        assert [output.name for output in metadata.outputs][:2] == ["embedding", "reconstruction"]
        config = client.get_model_config("tiny", headers=headers).config
        assert (config.max_batch_size, config.input[0].name, list(config.input[0].dims)) == (8, "image", [6, 4, 1])
        for values in (pixels, files):
            each = [
                client.infer("tiny", [image(values[i : i + 1])], "2", outputs=wanted(), headers=headers, request_id="k")
                for i in range(len(values))
            ]
            assert {answer.get_response().id for answer in each} == {"k"}
            found.append([answer.as_numpy("embedding")[0].tolist() for answer in each])
        best = [triton.InferRequestedOutput("probabilities", class_count=2)]
        [texts] = client.infer("tiny", [image(files[:1])], outputs=best, headers=headers).as_numpy("probabilities")
        assert all(text.count(b":") == 2 for text in texts)
        whole = client.infer("tiny", [image(pixels)], headers=headers)
        assert {output.name for output in whole.get_response().outputs} > {"reconstruction", "logits", "anomaly_score"}
        codes = triton.InferInput("embedding", list(whole.as_numpy("embedding").shape), "FP32")
        codes.set_data_from_numpy(whole.as_numpy("embedding"))
        drawn = client.infer("tiny", [codes], outputs=[triton.InferRequestedOutput("reconstruction")], headers=headers)
        np.testing.assert_allclose(drawn.as_numpy("reconstruction"), whole.as_numpy("reconstruction"), rtol=1e-5)
        statistics = client.get_inference_statistics("tiny", "2", headers=headers).model_stats
        assert statistics[0].inference_count >= 2 * len(files)
        refused(
            lambda: client.infer("other", [image(files)], headers=headers), "NOT_FOUND", "there is no model 'other'"
        )
        broken = np.array([files[0], b"none"], np.object_)
        refused(lambda: client.infer("tiny", [image(broken)], headers=headers), "INVALID_ARGUMENT", "image 1: ")
        index = client.get_model_repository_index(headers=headers).models
        assert [(each.version, each.state) for each in index] == [("1", "READY"), ("2", "READY")]
        client.unload_model("tiny", headers=headers)
        refused(lambda: client.is_model_ready("tiny", headers=headers), "NOT_FOUND", "tiny")
        client.load_model("tiny", headers=headers)
        assert client.is_model_ready("tiny", "2", headers=headers)


def of_a_stream() -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put(error or result), headers=headers)
        for i in range(len(files)):
            client.async_stream_infer("tiny", [image(files[i : i + 1])], outputs=wanted(), request_id=str(i))
        client.async_stream_infer("other", [image(files)], request_id="bad")
        client.async_stream_infer("tiny", [image(files)], request_id="last")
        *each, error, last = [answers.get(timeout=30) for _ in range(len(files) + 2)]
        client.stop_stream()
    assert [answer.get_response().id for answer in each] == [str(i) for i in range(len(files))]
    assert isinstance(error, InferenceServerException)
    assert "there is no model 'other'" in error.message()
    assert last.get_response().id == "last"
    found.append([answer.as_numpy("embedding")[0].tolist() for answer in each])


async def of_asyncio() -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_model_ready("tiny", headers=headers)
        asked = (
            client.infer("tiny", [image(pixels[i : i + 1])], outputs=wanted(), headers=headers)
            for i in range(len(files))
        )
        found.append([(await each).as_numpy("embedding")[0].tolist() for each in asked])


async def of_kserve() -> None:
    client = InferenceGRPCClient(address, timeout=30)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("tiny", headers=[("x-api-key", key)])
    embeddings = []
    for i in range(len(files)):
        tensor = InferInput("image", [1, *pixels.shape[1:]], "UINT8")
        tensor.set_data_from_numpy(pixels[i : i + 1], binary_data=bool(i))  # as typed contents, too
        request = InferRequest("tiny", [tensor], request_id="k")
        answer = await client.infer(request, headers=[("x-api-key", key)])
        assert answer.id == "k"
        [embedding] = [output for output in answer.outputs if output.name == "embedding"]
        embeddings.append(embedding.as_numpy()[0].tolist())
    found.append(embeddings)


if which == "triton":
    of_triton()
    of_a_stream()
    asyncio.run(of_asyncio())
else:
    asyncio.run(of_kserve())
print(json.dumps(found))
