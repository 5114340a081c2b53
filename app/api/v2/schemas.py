"""The protocol's JSON, for responses and for OpenAPI. wire.py parses requests, since clients send no content type."""

from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.json_schema import BOOLEAN, SIZE, STRING, Schema, array, binary, body, content, fields
from app.api.negotiation import JSON
from app.api.v2.wire import BINARY, LENGTH


class Failed(BaseModel):
    error: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ServerHealth(BaseModel):
    live: bool
    ready: bool


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any number of rows")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelHealth(BaseModel):
    name: str
    ready: bool


class ModelStatistics(BaseModel):
    model_stats: list[dict[str, Any]]


class IndexEntry(BaseModel):
    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: these statuses have an error of the protocol as their body."""
    failed = content({JSON: Failed.model_json_schema()})
    return {status: {"description": HTTPStatus(status).phrase, "content": failed} for status in statuses}


VERSION_PARAMETER = {"name": "version", "in": "path", "required": True, "schema": STRING}
_LENGTH_PARAMETER = {
    "name": LENGTH,
    "in": "header",
    "required": False,
    "schema": SIZE,
    "description": "bytes of JSON before the tensors; 0: one image's pixels, and no JSON; unset: all is JSON",
}
_ANY_OBJECT = {"type": "object"}
_BINARY = binary(f"{LENGTH} bytes of JSON, then tensors")


def _tensor(data: Schema, parameters: Schema) -> Schema:
    properties = {
        "name": STRING,
        "shape": array(SIZE, maxItems=8),
        "datatype": STRING,
        "data": data,
        "parameters": parameters,
    }
    return fields(properties, ["name", "shape", "datatype"])


_INPUT = _tensor(
    array(description="row-major, nested or flat; each element of BYTES is a file in base64"),
    fields({"binary_data_size": SIZE | {"description": "instead of data"}}),
)
_CLASSIFICATION = {
    "type": "integer",
    "minimum": 1,
    "description": "this many likeliest classes, as value:index:label",
}
_REQUESTED_OUTPUT = fields(
    {"name": STRING, "parameters": fields({"binary_data": BOOLEAN, "classification": _CLASSIFICATION})}, ["name"]
)
_REQUEST_PARAMETERS = fields(
    {
        "binary_data_output": BOOLEAN | {"description": "the default for outputs without binary_data"},
        "timeout": {"type": "integer", "minimum": 1, "description": "microseconds"},
    }
)
_REQUEST = fields(
    {
        "id": STRING | {"description": "returned with the response"},
        "parameters": _REQUEST_PARAMETERS,
        "inputs": array(_INPUT, minItems=1),
        "outputs": array(_REQUESTED_OUTPUT, description="absent or empty: all outputs"),
    },
    ["inputs"],
)
_RESPONSE = fields(
    {
        "model_name": STRING,
        "model_version": STRING,
        "id": STRING,
        "parameters": _ANY_OBJECT,
        "outputs": array(_tensor(array(), _ANY_OBJECT)),
    },
    ["model_name", "model_version", "outputs"],
)
INFER_BODY = {"parameters": [_LENGTH_PARAMETER]} | body({JSON: _REQUEST, BINARY: _BINARY})
INFER_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the outputs",
        "headers": {LENGTH: {"schema": {"type": "integer"}, "description": "set if tensors follow the JSON"}},
        "content": content({JSON: _RESPONSE, BINARY: _BINARY}),
    }
}
INDEX_BODY = body({JSON: fields({"ready": BOOLEAN | {"description": "only versions that are ready"}})}, required=False)
_VERSION = fields({"version": STRING | {"description": "unset: the highest in the folder"}})
LOAD_BODY = body({JSON: fields({"parameters": _VERSION})}, required=False)
