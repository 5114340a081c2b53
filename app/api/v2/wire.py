"""The protocol's bytes: a JSON object, and after it tensors in binary, little-endian, in the order of their mention."""

import base64
import binascii
import contextlib
import math
from collections.abc import Iterator, Sequence
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
}  # those that our tensors have
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_PREFIX = 4  # bytes of the length before each element of BYTES
_ENVELOPE = 1000  # commas and brackets around the tensors of a sensible request
_MOST_IN_JSON = 1_000_000  # of them in all: reading JSON holds everybody up, a tenth of a second for as many
_AT_ONCE = 1 << 16  # numbers; in between others have their turn
_MOST_DIMENSIONS = 8
_SHARED_MEMORY = "shared_memory_region"

Parameters = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """An input as it came: `data` is JSON's list, or the bytes after the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | memoryview

    def array(self) -> np.ndarray:
        """Of a datatype in DTYPES; every number is one of that type."""
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
        if dtype.itemsize == 1 and len(self.data) == size <= _AT_ONCE and set(map(type, self.data)) == {int}:
            with contextlib.suppress(ValueError):  # who is not within 0…255 is told of below
                return np.frombuffer(bytes(self.data), dtype).reshape(self.shape)  # a third of what is below
        kinds = (int,) if dtype.kind == "u" else (int, float)
        step = _AT_ONCE
        if self.data and isinstance(self.data[0], list):
            if len(self.data) > max(self.shape[:1], default=0):  # each is looked at by itself
                raise MalformedRequest(f"{self.name}: data is {len(self.data):,} rows; shape says {list(self.shape)}")
            step = 1
        try:
            parts = [numbers_of(self.data[at : at + step], kinds) for at in range(0, len(self.data), step)]
            values = np.concatenate(parts) if parts else np.empty(0)
        except ValueError:
            raise MalformedRequest(f"{self.name}: data is not a list of numbers that are {self.datatype}") from None
        if values.size != size or (values.ndim > 1 and values.shape != self.shape):
            told = list(values.shape) if values.ndim > 1 else f"{values.size:,} numbers"
            raise MalformedRequest(f"{self.name}: data is {told}; shape says {list(self.shape)}")
        if dtype.kind == "u" and ((values < 0) | (values > np.iinfo(dtype).max)).any():
            raise MalformedRequest(f"{self.name}: not all of data lies in 0…{np.iinfo(dtype).max}, as {self.datatype}")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite
            return values.astype(dtype).reshape(self.shape)

    def elements(self) -> list[bytes]:
        """Of BYTES, whose shape is known to be small; in JSON they are base64."""
        count = math.prod(self.shape)
        each = self._prefixed(self.data) if isinstance(self.data, memoryview) else self._decoded(self.data)
        found = list(islice(each, count + 1))
        if len(found) != count:
            told = f"{len(found):,}" if len(found) < count else "more"
            raise MalformedRequest(f"{self.name}: {told} elements of data; shape says {list(self.shape)}")
        return found

    def _prefixed(self, data: memoryview) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + _PREFIX], "little")
            at += _PREFIX
            if length > len(data) - at:
                raise MalformedRequest(f"{self.name}: an element's length runs past the end of its data")
            yield bytes(data[at : at + length])
            at += length

    def _decoded(self, data: list[Any]) -> Iterator[bytes]:
        for index, text in enumerate(data):
            if not isinstance(text, str):
                raise MalformedRequest(f"{self.name}: data[{index}] is not a string of base64")
            try:
                yield base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise MalformedRequest(f"{self.name}: data[{index}] is not base64: {error}") from None


@dataclass(frozen=True, slots=True)
class Asked:
    """An output as it is wanted; `classes` best ones of it, or all of its numbers."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    id: str | None
    inputs: list[Given]
    outputs: list[Asked] | None  # None is all there are
    binary: bool  # of outputs that are not named
    patience_ms: int | None


def json_length(value: str | None, body: bytes) -> int:
    """Of the JSON at the body's start, as the header says; without a header it is all of it."""
    if value is None:
        return len(body)
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise MalformedRequest(f"{LENGTH} {value[:40]!r} is not a number of bytes")
    if int(value) > len(body):
        raise MalformedRequest(f"{LENGTH} says {int(value):,}, and the body has {len(body):,} bytes")
    return int(value)


def question_of(body: bytes, length: int, most_values: int) -> Question:
    """`length` bytes of the body are JSON, in which the tensors have at most `most_values` numbers."""
    most = min(_MOST_IN_JSON, 4 * most_values + _ENVELOPE)  # [[[[1]]], [[[2]]], …
    document = json_of(body[:length], most)
    if not isinstance(document, dict):
        raise MalformedRequest('a JSON object {"inputs": [{"name", "shape", "datatype", "data"}, …]} is expected')
    parameters = parameters_of(document, "the request")
    given, asked = document.get("inputs"), document.get("outputs")
    if not isinstance(given, list) or not given:
        raise MalformedRequest("inputs: a list of at least one tensor is expected")
    if asked is not None and not isinstance(asked, list):
        raise MalformedRequest("outputs: a list is expected")
    binary = _flag(parameters, "binary_data_output", False, "the request")
    return Question(
        _id(document.get("id")),
        _distinct(list(_inputs(given, memoryview(body)[length:])), "inputs"),
        _distinct([_asked(each, binary) for each in asked], "outputs") if asked else None,
        binary,
        _patience(parameters.get("timeout")),
    )


def _distinct(named: list[Any], where: str) -> list[Any]:
    if len({each.name for each in named}) < len(named):
        raise MalformedRequest(f"{where}: one of them is there twice")
    return named


def _inputs(given: list[Any], rest: memoryview) -> Iterator[Given]:
    for tensor in given:
        name = _name(tensor, "inputs")
        parameters = parameters_of(tensor, name)
        datatype, shape = tensor.get("datatype"), tensor.get("shape")
        if not isinstance(datatype, str):
            raise MalformedRequest(f"{name}: datatype: a string is expected")
        if not (isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS and all(map(_is_size, shape))):
            raise MalformedRequest(f"{name}: shape: a list of whole numbers is expected")
        size = parameters.get("binary_data_size")
        data = tensor.get("data")
        if _SHARED_MEMORY in parameters:
            raise MalformedRequest(f"{name}: shared memory is no extension of this service; send the data")
        if (size is None) == (data is None):
            raise MalformedRequest(f"{name}: either data or parameters.binary_data_size is expected, and not both")
        if size is None:
            if not isinstance(data, list):
                raise MalformedRequest(f"{name}: data: a list is expected")
            yield Given(name, datatype, tuple(shape), data)
            continue
        if not _is_size(size) or size > len(rest):
            raise MalformedRequest(
                f"{name}: binary_data_size {size!r:.40} of the {len(rest):,} bytes left after the JSON ({LENGTH})"
            )
        yield Given(name, datatype, tuple(shape), rest[:size])
        rest = rest[size:]
    if len(rest):
        raise MalformedRequest(f"{len(rest):,} bytes after the JSON ({LENGTH}) belong to no input")


def _asked(output: Any, binary: bool) -> Asked:
    name = _name(output, "outputs")
    parameters = parameters_of(output, name)
    if _SHARED_MEMORY in parameters:
        raise MalformedRequest(f"{name}: shared memory is no extension of this service")
    classes = parameters.get("classification")
    if classes is not None and not (_is_size(classes) and classes > 0):
        raise MalformedRequest(f"{name}: classification {classes!r:.40} is not a number of classes")
    return Asked(name, _flag(parameters, "binary_data", binary, name), classes)


def _name(tensor: Any, where: str) -> str:
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise MalformedRequest(f"{where}: every one is an object with a name")
    return str(tensor["name"])


def parameters_of(of: dict[str, Any], where: str) -> Parameters:
    parameters = of.get("parameters", {})
    if not isinstance(parameters, dict):
        raise MalformedRequest(f"{where}: parameters: an object is expected")
    return parameters


def _flag(parameters: Parameters, name: str, otherwise: bool, where: str) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise MalformedRequest(f"{where}: {name} {value!r:.40} is neither true nor false")
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _id(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise MalformedRequest("id: a string is expected")
    return value


def _patience(microseconds: Any) -> int | None:
    if microseconds is None:
        return None
    if not (_is_size(microseconds) and microseconds > 0):
        raise MalformedRequest(f"timeout {microseconds!r:.40} is not a number of microseconds")
    return max(1, int(microseconds) // 1000)


def answer_of(head: dict[str, Any], outputs: Sequence[tuple[Asked, np.ndarray | list[list[str]]]]) -> Response:
    """The outputs in their order: an array of a dtype in DTYPES, or rows of text, which are BYTES."""
    told, after = [], []
    for asked, values in outputs:
        array = np.array(values, object) if isinstance(values, list) else values
        datatype = BYTES if isinstance(values, list) else DATATYPES[array.dtype]
        tensor: dict[str, Any] = {"name": asked.name, "datatype": datatype, "shape": list(array.shape)}
        if asked.binary:
            data = _bytes_of(array) if datatype == BYTES else array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(data)}
            after.append(data)
        else:
            tensor["data"] = array.ravel().tolist()
        told.append(tensor)
    document = to_json({**head, "outputs": told})
    if not after:
        return Response(document, media_type=JSON)
    return Response(b"".join((document, *after)), media_type=BINARY, headers={LENGTH: str(len(document))})


def _bytes_of(texts: np.ndarray) -> bytes:
    encoded = [text.encode() for text in texts.ravel()]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(_PREFIX, "little"), text))
