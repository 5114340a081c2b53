"""/v1/decode and /v1/generate: embeddings → images."""

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
from app.api.routes.operations import if_single, json_response, npy_response
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

_MAX_SEED = 2**63 - 1
_SHAPE = 'a JSON object {"embeddings": [[number, …], …]} is expected, each as long as the next'
Count = Annotated[int, Query(ge=1, description="how many images to draw")]
Seed = Annotated[
    int | None,
    Query(ge=0, le=_MAX_SEED, description="the same seed draws the same images; unset, a new one, which is returned"),
]


async def read_embeddings(request: Request, model: Model) -> np.ndarray:
    """(n, D) float32, all finite; n is 1 to max_images, D the model's latent size."""
    media_type, _, body = await read_body(request, (JSON, NPY))
    most, size = request.app.state.settings.max_images, model.bundle.manifest.latent_size
    max_values = 2 * most * (size + 1)  # in the JSON
    embeddings = await (parsed(_from_npy, body) if media_type == NPY else parsed(_from_json, body, max_values))
    if len(embeddings) > most:
        raise TooManyImages(f"{len(embeddings):,} embeddings; at most {most:,} are allowed in one request")
    if embeddings.shape[1] != size:
        raise MalformedRequest(
            f"embeddings of {embeddings.shape[1]} numbers; the embeddings of {model.name} have {size}"
        )
    if not np.isfinite(embeddings).all():
        raise MalformedRequest("embeddings: some numbers are not finite as float32")
    return embeddings


_BINARY = binary("NPY: N × H × W × C float32 in 0…1; PNG: one image", NPY, PNG)


@router.post(
    "/decode",
    summary="Embeddings back to images",
    response_model=DecodeResponse,
    responses=documented(400, 401, 404, 406, 408, 409, 413, 415, 429, 500, 503, 504) | _BINARY,
    openapi_extra=EMBEDDINGS_BODY,
)
async def decode(request: Request, call: ACall) -> Response:
    model = call.require_model("decode")
    embeddings = await read_embeddings(request, model)
    media_type = call.choose_type(JSON, NPY, *if_single(PNG, embeddings))

    def shape(images: np.ndarray) -> Response:
        if not np.isfinite(images).all():
            raise MalformedRequest("embeddings: so far from those of images that the decoder's output is not finite")
        if media_type != JSON:
            return _binary_response(media_type, images)
        return json_response(
            model.bundle, [{"image": pictures.base64_of(pictures.unit_png(image))} for image in images]
        )

    return await call.run_decoder(embeddings, model, shape)


@router.post(
    "/generate",
    summary="New images, drawn by a variational model",
    response_model=GenerateResponse,
    responses=documented(400, 401, 404, 406, 409, 413, 429, 500, 503, 504) | _BINARY,
)
async def generate(request: Request, call: ACall, n: Count = 1, seed: Seed = None) -> Response:
    model = call.require_model("generate")
    most: int = request.app.state.settings.max_images
    if n > most:
        raise TooManyImages(f"n={n:,}; at most {most:,} images are allowed in one request")
    media_type = call.choose_type(JSON, NPY, *if_single(PNG, range(n)))
    used_seed = secrets.randbelow(2**31) if seed is None else seed
    embeddings = np.random.default_rng(used_seed).standard_normal((n, model.bundle.manifest.latent_size), np.float32)

    def shape(images: np.ndarray) -> Response:
        finite(model.bundle, RECONSTRUCTION, images)
        if media_type != JSON:
            return _binary_response(media_type, images)
        results = [
            {"image": pictures.base64_of(pictures.unit_png(image)), "embedding": embedding}
            for image, embedding in zip(images, embeddings.tolist(), strict=True)
        ]
        return json_response(model.bundle, results, seed=used_seed)

    return await call.run_decoder(embeddings, model, shape)


def _binary_response(media_type: str, images: np.ndarray) -> Response:
    return npy_response(images) if media_type == NPY else Response(pictures.unit_png(images[0]), media_type=PNG)


def _from_npy(body: bytes) -> np.ndarray:
    try:
        embeddings = np.load(io.BytesIO(body), allow_pickle=False)
    except Exception as error:  # a parser fed hostile bytes raises nearly anything
        raise MalformedRequest(f"the body is not a .npy file: {error}") from None
    return _as_embeddings(embeddings, "the array is not an N × D array of numbers, N and D at least 1")


def _from_json(body: bytes, most: int) -> np.ndarray:
    document = json_of(body, most)
    if not isinstance(document, dict) or set(document) != {"embeddings"}:
        raise MalformedRequest(f"{_SHAPE}, without other fields")
    try:
        embeddings = numbers_of(document["embeddings"])
    except ValueError:
        raise MalformedRequest(_SHAPE) from None
    return _as_embeddings(embeddings, _SHAPE)


def _as_embeddings(array: object, message: str) -> np.ndarray:
    """Numbers too large for float32 become infinite, which `read_embeddings` refuses."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise MalformedRequest(message)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
