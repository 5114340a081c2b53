"""Run by tests/test_clients.py in the environment of `make clients`: kserve's client against ADDRESS, told as JSON."""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main(address: str, given: str) -> None:
    arrays = np.load(given)
    pixels = arrays["pixels"]
    files = [arrays[f"file{i}"].tobytes() for i in range(len(pixels))]
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(address) is True
    assert await client.is_server_ready(address) is True
    assert await client.is_model_ready(address, "tiny")
    assert not await client.is_model_ready(address, "other")

    async def ask(values: np.ndarray, datatype: str, binary: bool) -> object:
        image = InferInput("image", list(values.shape), datatype)
        image.set_data_from_numpy(values, binary_data=binary)
        requested = [RequestedOutput("embedding", parameters={"binary_data": binary})]
        request = InferRequest("tiny", [image], request_id="k", request_outputs=requested)
        answer = await client.infer(address, request, model_name="tiny")
        assert answer.id == "k"
        assert [output.name for output in answer.outputs] == ["embedding"]
        return answer

    answers = [
        [await ask(pixels[i : i + 1], "UINT8", True) for i in range(len(pixels))],
        [await ask(pixels[i : i + 1], "UINT8", False) for i in range(len(pixels))],
        [await ask(np.array([file], np.object_), "BYTES", True) for file in files],
    ]
    whole = await ask(pixels, "UINT8", True)
    assert whole.outputs[0].as_numpy().shape[0] == len(pixels)
    other = client.infer(address, InferRequest("other", []), model_name="other")
    [refused] = await asyncio.gather(other, return_exceptions=True)
    assert isinstance(refused, httpx.HTTPStatusError), refused
    assert "there is no model 'other'" in str(refused)
    plain = await client.infer(
        address,
        {"inputs": [{"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.tolist()}]},
        model_name="tiny",
    )
    assert len(plain.outputs) == 6
    print(json.dumps([[answer.outputs[0].as_numpy()[0].tolist() for answer in way] for way in answers]))
    await client.close()


asyncio.run(main(*sys.argv[1:]))
