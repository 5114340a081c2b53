"""JSON Schema for OpenAPI, of the bodies that no pydantic model describes."""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
SIZE: Schema = {"type": "integer", "minimum": 0}


def binary(description: str | None = None) -> Schema:
    return {"type": "string", "format": "binary"} | ({"description": description} if description else {})


def array(items: Schema | None = None, **keywords: Any) -> Schema:
    return {"type": "array"} | ({"items": items} if items else {}) | keywords


def fields(properties: Mapping[str, Schema], required: Sequence[str] = (), **keywords: Any) -> Schema:
    """An object with these properties."""
    return {"type": "object", "properties": properties} | ({"required": required} if required else {}) | keywords


def content(schemas: Mapping[str, Schema]) -> Schema:
    """Schemas by media type."""
    return {media_type: {"schema": schema} for media_type, schema in schemas.items()}


def body(schemas: Mapping[str, Schema], required: bool = True) -> Schema:
    """For a route's `openapi_extra`: the request's body, by media type."""
    return {"requestBody": ({"required": True} if required else {}) | {"content": content(schemas)}}
