"""Messages of the protocol → the requests that app/api/v2 reads, and its outputs → messages.

What a request may hold, and what it means, is decided there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from app.api.rpc.messages import message
from app.api.v2.wire import (
    BYTES,
    MAX_LISTED_VALUES,
    InferRequest,
    Outputs,
    OutputTensor,
    Parameters,
    infer_request_of,
    joined_elements,
)
from app.bundle.bundle import Bundle
from app.errors import MalformedRequest, TooManyImages

Message = Any  # of a class that app.api.rpc.messages makes

_Request, _Response = message("ModelInferRequest"), message("ModelInferResponse")
_CONTENTS = {  # datatype → the field of InferTensorContents that holds it
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def parse(body: bytes) -> Message:
    try:
        return _Request.FromString(body)
    except DecodeError:
        raise MalformedRequest("the message is not a ModelInferRequest") from None


def infer_request(request: Message) -> InferRequest:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise MalformedRequest(f"raw_input_contents: {len(raw):,} entries for {len(request.inputs):,} inputs")
    parts: list[bytes] = []
    document = {
        "id": request.id or None,
        "parameters": parameters(request.parameters),
        "inputs": [_input(tensor, raw[at] if raw else None, parts) for at, tensor in enumerate(request.inputs)],
        "outputs": [{"name": each.name, "parameters": parameters(each.parameters)} for each in request.outputs],
    }
    return infer_request_of(document, memoryview(parts[0] if len(parts) == 1 else b"".join(parts)))


def _input(tensor: Message, raw: bytes | None, parts: list[bytes]) -> dict[str, Any]:
    """As in the JSON of /v2; binary data is added to `parts`."""
    options = parameters(tensor.parameters)
    options.pop("binary_data_size", None)  # of REST
    document = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": options}
    if raw is None:
        values = _contents(tensor)
        if tensor.datatype != BYTES:
            return document | {"data": values}
        raw = joined_elements(values)
    elif tensor.HasField("contents"):
        raise MalformedRequest(f"{tensor.name}: send either contents or raw_input_contents, not both")
    parts.append(raw)
    options["binary_data_size"] = len(raw)
    return document


def _contents(tensor: Message) -> list[Any]:
    name = tensor.name
    expected = _CONTENTS.get(tensor.datatype)
    if expected is None:
        raise MalformedRequest(f"{name}: datatype {tensor.datatype[:20]!r} has no contents; send raw_input_contents")
    for field, values in tensor.contents.ListFields():
        if field.name != expected:
            raise MalformedRequest(f"{name}: contents: {tensor.datatype} goes into {expected}, not {field.name}")
        if len(values) > MAX_LISTED_VALUES:
            raise TooManyImages(
                f"{name}: {len(values):,} values in contents; at most {MAX_LISTED_VALUES:,}: send raw_input_contents"
            )
    return list(getattr(tensor.contents, expected))


def parameters(given: Mapping[str, Message]) -> Parameters:
    return dict(_chosen(given))


def _chosen(given: Mapping[str, Message]) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        field = value.WhichOneof("parameter_choice")
        if field is not None:
            yield name, getattr(value, field)


def infer_response(bundle: Bundle, request_id: str | None, outputs: Outputs) -> Message:
    response = _Response(model_name=bundle.name, model_version=str(bundle.version), id=request_id or "")
    response.parameters["digest"].string_param = bundle.digest
    for requested, values in outputs:
        output = OutputTensor.of(requested.name, values)
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.array.shape)
        response.raw_output_contents.append(output.data())
    return response


def of_document(name: str, document: dict[str, Any]) -> Message:
    """The message of that name from what /v2 sends as JSON; fields that it lacks are left out."""
    return json_format.ParseDict(document, message(name)(), ignore_unknown_fields=True)
