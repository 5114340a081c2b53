"""The protocol's JSON, for responses and for OpenAPI. wire.py parses requests, since clients send no content type."""

from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, Field

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
    shape: list[int] = Field(description="-1 is any number of rows")


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
    content = {JSON: {"schema": Failed.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


VERSION_PARAMETER = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
_PARAMETERS = {"type": "object"}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 8}
_DATA = {"type": "array", "description": "row-major, nested or flat; of BYTES: each a file in base64"}


def _tensor(also: dict[str, Any], required: list[str]) -> dict[str, Any]:
    properties = {"name": {"type": "string"}, **also, "parameters": _PARAMETERS}
    return {"type": "object", "properties": properties, "required": ["name", *required]}


_INPUT = _tensor({"shape": _SHAPE, "datatype": {"type": "string"}, "data": _DATA}, ["shape", "datatype"])
_INPUT["properties"]["parameters"] = {
    "type": "object",
    "properties": {"binary_data_size": {"type": "integer", "minimum": 0, "description": "in place of data"}},
}
_ASKED = _tensor({}, [])
_ASKED["properties"]["parameters"] = {
    "type": "object",
    "properties": {
        "binary_data": {"type": "boolean"},
        "classification": {
            "type": "integer",
            "minimum": 1,
            "description": "the best classes alone, as value:index:label",
        },
    },
}
_QUESTION = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "comes back with the answer"},
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data_output": {"type": "boolean", "description": "of all outputs that do not say themselves"},
                "timeout": {"type": "integer", "minimum": 1, "description": "microseconds"},
            },
        },
        "inputs": {"type": "array", "items": _INPUT, "minItems": 1},
        "outputs": {"type": "array", "items": _ASKED, "description": "none, or empty: all there are"},
    },
    "required": ["inputs"],
}
_GIVEN = _tensor({"shape": _SHAPE, "datatype": {"type": "string"}, "data": {"type": "array"}}, ["shape", "datatype"])
_ANSWER = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "outputs": {"type": "array", "items": _GIVEN},
    },
    "required": ["model_name", "model_version", "outputs"],
}
_BINARY = {"schema": {"type": "string", "format": "binary", "description": f"{LENGTH} bytes of JSON, then tensors"}}
INFER_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": LENGTH,
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "bytes of JSON before the tensors; 0: one image's pixels, and no JSON; unset: all is JSON",
        }
    ],
    "requestBody": {"required": True, "content": {JSON: {"schema": _QUESTION}, BINARY: _BINARY}},
}
INFER_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "what was asked for",
        "headers": {LENGTH: {"schema": {"type": "integer"}, "description": "where tensors come after the JSON"}},
        "content": {JSON: {"schema": _ANSWER}, BINARY: _BINARY},
    }
}
INDEX_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "properties": {"ready": {"type": "boolean", "description": "only those that are"}},
                }
            }
        }
    }
}
LOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "parameters": {
                            "type": "object",
                            "properties": {
                                "version": {"type": "string", "description": "unset, the highest in the folder"}
                            },
                        }
                    },
                }
            }
        }
    }
}
