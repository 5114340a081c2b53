"""The protocol's wire format: a JSON object, then binary tensors, little-endian, in the order the JSON names them."""

import base64
import binascii
import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from fastapi import Response
from pydantic_core import to_json

from app.api.negotiation import JSON
from app.api.request_body import json_of, numbers_of
from app.errors import MalformedRequest

LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}  # of Graft's tensors
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 4  # before each element of BYTES
_EXTRA_VALUES = 1000  # commas and brackets around the tensors of a normal request
MAX_LISTED_VALUES = 1_000_000  # parsing this many blocks the event loop for 0.1 s
_CHUNK = 1 << 16  # numbers; between chunks other threads may run
_MAX_DIMENSIONS = 8
_SHARED_MEMORY = "shared_memory_region"

Parameters = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input as it was sent: `data` is the list in the JSON, or the bytes after it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | memoryview

    def array(self) -> np.ndarray:
        """The data in its shape; the datatype is one of DTYPES. JSON integers outside its range are refused, and floats
        become infinite."""
        dtype, size = DTYPES[self.datatype], math.prod(self.shape)
        if isinstance(self.data, memoryview):
            if len(self.data) != size * dtype.itemsize:
                raise MalformedRequest(
                    f"{self.name}: {len(self.data):,} bytes of data; {self.datatype} of {list(self.shape)} has "
                    f"{size * dtype.itemsize:,}"
                )
            return np.require(np.frombuffer(self.data, dtype), requirements="A").reshape(self.shape)
        return self._from_json(dtype, size)

    def _from_json(self, dtype: np.dtype[Any], size: int) -> np.ndarray:
        if dtype.itemsize == 1 and len(self.data) == size <= _CHUNK and set(map(type, self.data)) == {int}:
            with contextlib.suppress(ValueError):  # numbers outside 0…255 are refused below
                return np.frombuffer(bytes(self.data), dtype).reshape(self.shape)  # three times as fast as below
        kinds = (int,) if dtype.kind == "u" else (int, float)
        step = _CHUNK
        if self.data and isinstance(self.data[0], list):
            if len(self.data) > max(self.shape[:1], default=0):  # each row is converted on its own
                raise MalformedRequest(f"{self.name}: data is {len(self.data):,} rows; shape says {list(self.shape)}")
            step = 1
        try:
            parts = [numbers_of(self.data[at : at + step], kinds) for at in range(0, len(self.data), step)]
            values = np.concatenate(parts) if parts else np.empty(0)
        except ValueError:
            raise MalformedRequest(f"{self.name}: data is not a list of {self.datatype} numbers") from None
        if values.size != size or (values.ndim > 1 and values.shape != self.shape):
            actual = f"of shape {list(values.shape)}" if values.ndim > 1 else f"{values.size:,} numbers"
            raise MalformedRequest(f"{self.name}: data is {actual}; shape says {list(self.shape)}")
        if dtype.kind == "u" and ((values < 0) | (values > np.iinfo(dtype).max)).any():
            raise MalformedRequest(
                f"{self.name}: data has numbers outside 0…{np.iinfo(dtype).max}, the range of {self.datatype}"
            )
        with np.errstate(over="ignore"):  # numbers too large become infinite
            return values.astype(dtype).reshape(self.shape)

    def elements(self) -> list[bytes]:
        """The elements of a BYTES tensor; in JSON they are base64. Call it after the shape has been checked."""
        count = math.prod(self.shape)
        each = self._from_bytes(self.data) if isinstance(self.data, memoryview) else self._from_base64(self.data)
        elements = list(islice(each, count + 1))
        if len(elements) != count:
            actual = f"{len(elements):,}" if len(elements) < count else "more"
            raise MalformedRequest(f"{self.name}: {actual} elements of data; shape says {list(self.shape)}")
        return elements

    def _from_bytes(self, data: memoryview) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + _LENGTH_BYTES], "little")
            at += _LENGTH_BYTES
            if length > len(data) - at:
                raise MalformedRequest(f"{self.name}: an element's length runs past the end of its data")
            yield bytes(data[at : at + length])
            at += length

    def _from_base64(self, data: list[Any]) -> Iterator[bytes]:
        for index, text in enumerate(data):
            if not isinstance(text, str):
                raise MalformedRequest(f"{self.name}: data[{index}] is not a string of base64")
            try:
                yield base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise MalformedRequest(f"{self.name}: data[{index}] is not base64: {error}") from None


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client wants: all its numbers, or the `classes` likeliest as text."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    id: str | None
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None  # None: all that the model has
    binary: bool  # the default of outputs that do not say
    timeout_ms: int | None


def json_length(value: str | None, body: bytes) -> int:
    """Length of the JSON at the body's start, by the header; without one, the whole body."""
    if value is None:
        return len(body)
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise MalformedRequest(f"{LENGTH} {value[:40]!r} is not a number of bytes")
    if int(value) > len(body):
        raise MalformedRequest(f"{LENGTH} says {int(value):,}, and the body has {len(body):,} bytes")
    return int(value)


def parse_infer_request(body: bytes, length: int, most_values: int) -> InferRequest:
    """The first `length` bytes of the body are JSON, whose tensors may have `most_values` numbers."""
    most = min(MAX_LISTED_VALUES, 4 * most_values + _EXTRA_VALUES)  # [[[[1]]], [[[2]]], …
    document = json_of(body[:length], most)
    if not isinstance(document, dict):
        raise MalformedRequest('a JSON object {"inputs": [{"name", "shape", "datatype", "data"}, …]} is expected')
    return infer_request_of(document, memoryview(body)[length:])


def infer_request_of(document: dict[str, Any], rest: memoryview) -> InferRequest:
    """`rest` holds the binary tensors."""
    parameters = parameters_of(document, "the request")
    inputs, outputs = document.get("inputs"), document.get("outputs")
    if not isinstance(inputs, list) or not inputs:
        raise MalformedRequest("inputs: a list of at least one tensor is expected")
    if outputs is not None and not isinstance(outputs, list):
        raise MalformedRequest("outputs: a list is expected")
    binary = _flag(parameters, "binary_data_output", False, "the request")
    return InferRequest(
        id=_id(document.get("id")),
        inputs=_distinct(list(_inputs(inputs, rest)), "inputs"),
        outputs=_distinct([_requested_output(each, binary) for each in outputs], "outputs") if outputs else None,
        binary=binary,
        timeout_ms=_timeout_ms(parameters.get("timeout")),
    )


def _distinct(named: list[Any], where: str) -> list[Any]:
    if len({each.name for each in named}) < len(named):
        raise MalformedRequest(f"{where}: a name occurs twice")
    return named


def _inputs(inputs: list[Any], rest: memoryview) -> Iterator[InputTensor]:
    for tensor in inputs:
        name = _name(tensor, "inputs")
        parameters = parameters_of(tensor, name)
        datatype, shape = tensor.get("datatype"), tensor.get("shape")
        if not isinstance(datatype, str):
            raise MalformedRequest(f"{name}: datatype: a string is expected")
        if not (isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS and all(map(_is_size, shape))):
            raise MalformedRequest(f"{name}: shape: a list of whole numbers is expected")
        size = parameters.get("binary_data_size")
        data = tensor.get("data")
        if _SHARED_MEMORY in parameters:
            raise MalformedRequest(f"{name}: shared memory is not supported; send the data")
        if (size is None) == (data is None):
            raise MalformedRequest(f"{name}: send either data or parameters.binary_data_size, not both")
        if size is None:
            if not isinstance(data, list):
                raise MalformedRequest(f"{name}: data: a list is expected")
            yield InputTensor(name, datatype, tuple(shape), data)
            continue
        if not _is_size(size) or size > len(rest):
            raise MalformedRequest(
                f"{name}: binary_data_size {size!r:.40}, but {len(rest):,} bytes are left after the JSON ({LENGTH})"
            )
        yield InputTensor(name, datatype, tuple(shape), rest[:size])
        rest = rest[size:]
    if len(rest):
        raise MalformedRequest(f"{len(rest):,} bytes after the JSON ({LENGTH}) belong to no input")


def _requested_output(output: Any, binary: bool) -> RequestedOutput:
    name = _name(output, "outputs")
    parameters = parameters_of(output, name)
    if _SHARED_MEMORY in parameters:
        raise MalformedRequest(f"{name}: shared memory is not supported")
    classes = parameters.get("classification")
    if classes is not None and not (_is_size(classes) and classes > 0):
        raise MalformedRequest(f"{name}: classification {classes!r:.40} is not a number of classes")
    return RequestedOutput(name, _flag(parameters, "binary_data", binary, name), classes)


def _name(tensor: Any, where: str) -> str:
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise MalformedRequest(f"{where}: an object with a name is expected")
    return str(tensor["name"])


def parameters_of(document: dict[str, Any], where: str) -> Parameters:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise MalformedRequest(f"{where}: parameters: an object is expected")
    return parameters


def _flag(parameters: Parameters, name: str, default: bool, where: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"{where}: {name} {value!r:.40} is neither true nor false")
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _id(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise MalformedRequest("id: a string is expected")
    return value


def _timeout_ms(microseconds: Any) -> int | None:
    if microseconds is None:
        return None
    if not (_is_size(microseconds) and microseconds > 0):
        raise MalformedRequest(f"timeout {microseconds!r:.40} is not a number of microseconds")
    return max(1, int(microseconds) // 1000)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output to send: an array of a dtype in DTYPES, or of text, which is BYTES."""

    name: str
    datatype: str
    array: np.ndarray

    @classmethod
    def of(cls, name: str, values: np.ndarray | list[list[str]]) -> "OutputTensor":
        if isinstance(values, list):
            return cls(name, BYTES, np.array(values, object))
        return cls(name, DATATYPES[values.dtype], values)

    def data(self) -> bytes:
        if self.datatype == BYTES:
            return joined_elements(text.encode() for text in self.array.ravel())
        return self.array.tobytes()


Outputs = Sequence[tuple[RequestedOutput, np.ndarray | list[list[str]]]]


def infer_response(head: dict[str, Any], outputs: Outputs) -> Response:
    """The response with its outputs in order."""
    tensors, binary = [], []
    for requested, values in outputs:
        output = OutputTensor.of(requested.name, values)
        array = output.array
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(array.shape)}
        if requested.binary:
            data = output.data()
            tensor["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    document = to_json({**head, "outputs": tensors})
    if not binary:
        return Response(document, media_type=JSON)
    return Response(b"".join((document, *binary)), media_type=BINARY, headers={LENGTH: str(len(document))})


def joined_elements(elements: Iterable[bytes]) -> bytes:
    """The data of a BYTES tensor."""
    return b"".join(part for each in elements for part in (len(each).to_bytes(_LENGTH_BYTES, "little"), each))
