"""/v1/decode and /v1/generate: from embeddings back to images."""

import io
import secrets
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from app.api import pictures
from app.api.call import ACall
from app.api.negotiation import JSON, NPY, PNG
from app.api.problems import documented
from app.api.request_body import json_of, numbers_of, parsed, read_body
from app.api.routes.operations import as_json, as_npy, one
from app.api.schemas import (
    EMBEDDINGS_BODY,
    DecodeResponse,
    GenerateResponse,
    binary,
)
from app.errors import MalformedRequest, TooManyImages
from app.inference.answer import RECONSTRUCTION, finite
from app.inference.model import Model

router = APIRouter(prefix="/v1", tags=["operations"])

_MOST_SEED = 2**63 - 1
_SHAPE = 'a JSON object {"embeddings": [[number, …], …]} is expected, each as long as the next'
Count = Annotated[int, Query(ge=1, description="how many images to draw")]
Seed = Annotated[
    int | None, Query(ge=0, le=_MOST_SEED, description="draws the same again; unset, a new one, which is told")
]


async def read_embeddings(request: Request, model: Model) -> np.ndarray:
    """(n, D) float32, finite, of the model's D; n is at least one."""
    kind, _, body = await read_body(request, (JSON, NPY))
    most, size = request.app.state.settings.max_images, model.bundle.manifest.latent_size
    enough = 2 * most * (size + 1)  # values of a document that is worth a closer look
    embeddings = await (parsed(_from_npy, body) if kind == NPY else parsed(_from_json, body, enough))
    if len(embeddings) > most:
        raise TooManyImages(f"{len(embeddings):,} embeddings; at most {most:,} are allowed in one request")
    if embeddings.shape[1] != size:
        raise MalformedRequest(
            f"embeddings of {embeddings.shape[1]} numbers; the embeddings of {model.name} have {size}"
        )
    if not np.isfinite(embeddings).all():
        raise MalformedRequest("embeddings: not all of them are finite numbers")
    return embeddings


_FORMS = binary("NPY: N × H × W × C float32 in 0…1; PNG: one image", NPY, PNG)


@router.post(
    "/decode",
    summary="Codes back to images",
    response_model=DecodeResponse,
    responses=documented(400, 401, 404, 406, 408, 409, 413, 415, 429, 500, 503, 504) | _FORMS,
    openapi_extra=EMBEDDINGS_BODY,
)
async def decode(request: Request, call: ACall) -> Response:
    model = call.require_model("decode")
    embeddings = await read_embeddings(request, model)
    form = call.choose_type(JSON, NPY, *one(PNG, embeddings))

    def shape(images: np.ndarray) -> Response:
        if not np.isfinite(images).all():
            raise MalformedRequest("embeddings: so far from any image's that the decoder draws nothing")
        if form != JSON:
            return _picture(form, images)
        return as_json(model.bundle, [{"image": pictures.base64_of(pictures.unit_png(image))} for image in images])

    return await call.run_decoder(embeddings, model, shape)


@router.post(
    "/generate",
    summary="Images that nobody took, of a variational model",
    response_model=GenerateResponse,
    responses=documented(400, 401, 404, 406, 409, 413, 429, 500, 503, 504) | _FORMS,
)
async def generate(request: Request, call: ACall, n: Count = 1, seed: Seed = None) -> Response:
    model = call.require_model("generate")
    most: int = request.app.state.settings.max_images
    if n > most:
        raise TooManyImages(f"n={n:,}; at most {most:,} images are allowed in one request")
    form = call.choose_type(JSON, NPY, *one(PNG, range(n)))
    drawn_by = secrets.randbelow(2**31) if seed is None else seed
    embeddings = np.random.default_rng(drawn_by).standard_normal((n, model.bundle.manifest.latent_size), np.float32)

    def shape(images: np.ndarray) -> Response:
        finite(model.bundle, RECONSTRUCTION, images)
        if form != JSON:
            return _picture(form, images)
        results = [
            {"image": pictures.base64_of(pictures.unit_png(image)), "embedding": code}
            for image, code in zip(images, embeddings.tolist(), strict=True)
        ]
        return as_json(model.bundle, results, seed=drawn_by)

    return await call.run_decoder(embeddings, model, shape)


def _picture(form: str, images: np.ndarray) -> Response:
    return as_npy(images) if form == NPY else Response(pictures.unit_png(images[0]), media_type=PNG)


def _from_npy(body: bytes) -> np.ndarray:
    try:
        embeddings = np.load(io.BytesIO(body), allow_pickle=False)
    except Exception as error:  # a parser fed hostile bytes raises nearly anything
        raise MalformedRequest(f"the body is not numpy's .npy: {error}") from None
    return _as_embeddings(embeddings, "the array is not of numbers, N × D with neither 0")


def _from_json(body: bytes, most: int) -> np.ndarray:
    document = json_of(body, most)
    if not isinstance(document, dict) or set(document) != {"embeddings"}:
        raise MalformedRequest(f"{_SHAPE}, and nothing else in it")
    try:
        embeddings = numbers_of(document["embeddings"])
    except ValueError:
        raise MalformedRequest(_SHAPE) from None
    return _as_embeddings(embeddings, _SHAPE)


def _as_embeddings(array: object, otherwise: str) -> np.ndarray:
    """What does not fit into float32 becomes infinite, which `read_embeddings` refuses."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise MalformedRequest(otherwise)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
