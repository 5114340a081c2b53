"""/v1/embeddings: `encode` in the dialect that clients of OpenAI's embeddings speak, with images as data URIs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from pydantic_core import to_json

from app.api import json_schema
from app.api.call import Call, Plan, Timeout
from app.api.middleware.root_path import EMBEDDINGS
from app.api.multipart import refuse_too_many
from app.api.negotiation import JSON
from app.api.problems import documented
from app.api.request_body import file_of_base64, json_of, parsed, read_body
from app.api.schemas import OPENAI_PROBLEM, EmbeddingList
from app.bundle.bundle import Bundle
from app.errors import MalformedRequest
from app.inference.answer import EMBEDDING
from app.inference.predictor import Prediction

router = APIRouter(tags=["operations"])

_FORMATS = ("float", "base64")
_FIELDS = ("input", "model", "encoding_format", "dimensions", "user")
_EXTRA_VALUES = 20  # commas and brackets besides those of the images
_DATA_URI = json_schema.STRING | {
    "pattern": "^data:[^,]*;base64,",
    "description": "an image as data:image/png;base64,…",
}
_BODY = json_schema.body(
    {
        JSON: json_schema.fields(
            {
                "input": {"anyOf": [_DATA_URI, json_schema.array(_DATA_URI, minItems=1)]},
                "model": json_schema.STRING | {"description": "name or name@version; absent, the default model"},
                "encoding_format": {
                    "enum": list(_FORMATS),
                    "description": "base64: float32, little-endian. Absent, float",
                },
                "dimensions": {"type": "integer", "minimum": 1, "description": "the model's own number, or absent"},
                "user": json_schema.STRING | {"description": "ignored"},
            },
            ["input"],
            additionalProperties=False,
        )
    }
)


@dataclass(frozen=True, slots=True)
class _Question:
    files: list[bytes]
    model: str | None
    as_base64: bool
    dimensions: int | None


async def _call(request: Request, timeout_ms: Timeout = None) -> Call:
    """The model is named in the body."""
    call = Call(request, timeout_ms=timeout_ms)
    call.require_room()
    return call


@router.post(
    EMBEDDINGS,
    summary="Embeddings, for clients of OpenAI's API",
    response_model=EmbeddingList,
    responses=documented(400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, schema=OPENAI_PROBLEM),
    openapi_extra=_BODY,
)
async def embeddings(request: Request, call: Annotated[Call, Depends(_call)]) -> Response:
    _, _, body = await read_body(request, (JSON,))
    question = await parsed(_parse, body, request.app.state.settings.max_images)
    call.model = question.model
    size = call.require_model("encode").bundle.manifest.latent_size
    if question.dimensions not in (None, size):
        raise MalformedRequest(
            f"dimensions: {question.dimensions:,}; the embeddings of this model have {size}, and are not trained to be "
            "cut: leave it out"
        )

    def shape(result: Prediction) -> Response:
        return _answer(result.bundle, result.outputs[EMBEDDING], question.as_base64)

    return await call.run(question.files, Plan(["encode"], frozenset([EMBEDDING]), shape))


def _parse(body: bytes, most: int) -> _Question:
    document = json_of(body, 2 * most + _EXTRA_VALUES)
    if not isinstance(document, dict):
        raise MalformedRequest('a JSON object {"input": ["data:image/png;base64,…", …]} is expected')
    unknown = [name for name in document if name not in _FIELDS]
    if unknown:
        raise MalformedRequest(f"{unknown[0][:100]!r} is not supported; the fields are {', '.join(_FIELDS)}")
    given = document.get("input")
    inputs = given if isinstance(given, list) else [given]
    if not inputs:
        raise MalformedRequest("input is empty: send at least one image")
    refuse_too_many(len(inputs), most)
    model = _optional(document, "model", str, "a string")
    format_ = _optional(document, "encoding_format", str, "a string") or "float"
    if format_ not in _FORMATS:
        raise MalformedRequest(f"encoding_format: {format_[:100]!r} is neither {' nor '.join(_FORMATS)}")
    _optional(document, "user", str, "a string")
    dimensions = _optional(document, "dimensions", int, "a whole number")
    return _Question(_files(inputs), model, format_ == "base64", dimensions)


def _optional(document: dict[str, Any], name: str, kind: type, expected: str) -> Any:
    value = document.get(name)
    if value is not None and type(value) is not kind:
        raise MalformedRequest(f"{name}: {value!r:.40} is not {expected}")
    return value


def _files(inputs: Sequence[Any]) -> list[bytes]:
    files = []
    for index, text in enumerate(inputs):
        place = index if len(inputs) > 1 else None
        head, comma, data = text.partition(",") if isinstance(text, str) else ("", "", "")
        if not (head[:5].lower() == "data:" and head[-7:].lower() == ";base64" and comma):
            raise MalformedRequest(
                f"input[{index}] is no image as a data URI: this embeds images, not text, tokens or addresses: send "
                '"data:image/png;base64,…"',
                place,
            )
        file = file_of_base64(data, f"input[{index}]", place)
        if not file:
            raise MalformedRequest(f"input[{index}] is empty: zero bytes", place)
        files.append(file)
    return files


def _answer(bundle: Bundle, rows: np.ndarray, as_base64: bool) -> Response:
    each = (
        [base64.b64encode(row.tobytes()).decode() for row in rows.astype("<f4", copy=False)]
        if as_base64
        else rows.tolist()
    )
    document = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(each)],
        "model": f"{bundle.name}@{bundle.version}",
        "digest": bundle.digest,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    return Response(to_json(document), media_type=JSON)
