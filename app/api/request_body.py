"""A request's body → the encoded images in it. Limits come first: nothing is read that would be refused."""

import asyncio
import base64
import binascii
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Request
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.api.multipart import files_of, refuse_too_many
from app.errors import BodyTooLarge, MalformedRequest, TooManyImages, UnsupportedMediaType
from app.settings import Settings
from app.telemetry.requests import current_record

Parsed = TypeVar("Parsed")
_READ = {b"content-type", b"content-encoding", b"content-length"}
_FORM, _JSON = "multipart/form-data", "application/json"
_PARSED_AT_ONCE = 256 << 10  # bytes of a body; larger ones are parsed in a thread


async def read_images(request: Request) -> list[bytes]:
    """In the order they came; at least one."""
    settings: Settings = request.app.state.settings
    kind, declared, body = await read_body(request, (_FORM, "image/*", _JSON))
    if kind == _FORM:
        images = await parsed(files_of, body, declared, settings.max_images)
    elif kind == _JSON:
        images = await parsed(_from_json, body, settings.max_images)
    else:
        images = [body]
    for index, image in enumerate(images):
        if not image:
            raise MalformedRequest("the image is empty: zero bytes", _place(index, images))
    return images


async def read_body(request: Request, accepted: Sequence[str]) -> tuple[str, str, bytes]:
    """(media type, whole content type, body): one of the accepted types, within the limit, or refused unread."""
    told = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
    headers = _headers(request)
    declared = headers.get(b"content-type")
    if declared is None:
        raise UnsupportedMediaType(f"no Content-Type: send {told}")
    kind = declared.partition(";")[0].strip().lower()
    if kind not in accepted and f"{kind.partition('/')[0]}/*" not in accepted:
        raise UnsupportedMediaType(f"Content-Type {declared[:100]!r} is not one we read: send {told}")
    return kind, declared, await _within_limits(request, headers)


Images = Annotated[list[bytes], Depends(read_images)]


async def parsed(parse: Callable[..., Parsed], body: bytes, *rest: object) -> Parsed:
    """Large bodies off the event loop, so that nobody else waits for them."""
    return parse(body, *rest) if len(body) < _PARSED_AT_ONCE else await asyncio.to_thread(parse, body, *rest)


async def read(request: Request) -> bytes:
    """The body, of whatever type, within the limit."""
    return await _within_limits(request, _headers(request))


def _headers(request: Request) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in reversed(request.scope["headers"]) if name in _READ}


async def _within_limits(request: Request, headers: Mapping[bytes, str]) -> bytes:
    coding = headers.get(b"content-encoding", "identity")
    if coding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {coding[:100]!r}: send the body uncompressed; images already are")
    settings: Settings = request.app.state.settings
    body = await _read(request.receive, headers.get(b"content-length", ""), settings.max_body_bytes)
    current_record().body_read = perf_counter()
    return body


async def _read(receive: Receive, declared: str, limit: int) -> bytes:
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise BodyTooLarge(f"the body is {int(declared[:20]):,} bytes; at most {limit:,} are allowed")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise BodyTooLarge(f"the body is more than the {limit:,} bytes allowed")
        more = message.get("more_body", False)
        if not body and not more:  # most come in one piece
            return chunk
        body += chunk
        if not more:
            return bytes(body)


def _place(index: int, among: Sequence[object]) -> int | None:
    """What an error says of which image is at fault: nothing, where there is only one."""
    return index if len(among) > 1 else None


def json_of(body: bytes, most: int) -> Any:
    """The document. One of more than `most` values is refused at a glance: building it costs far more than its bytes.

    Commas and brackets are counted wherever they stand; nothing that is asked for has any within its strings, but for
    the comma of a data URL.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > most:
        raise TooManyImages("the JSON has more values in it than one request may need")
    try:
        return from_json(body.removeprefix(BOM_UTF8))  # twice as fast as json's, where there are many numbers
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from None


def numbers_of(values: Any, kinds: Collection[type] = (int, float)) -> np.ndarray:
    """Lists of one depth → float64, exact below 2⁵³; a ValueError where anything in them is of another kind.

    numpy left to itself takes true for one, and gives each number the room of the longest string beside it.
    """
    array = np.array(values, object)
    if not set(kinds).issuperset(map(type, array.ravel().tolist())):
        raise ValueError("not all of them are numbers of the kind")
    try:
        return array.astype(np.float64)
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _from_json(body: bytes, most: int) -> list[bytes]:
    document = json_of(body, 2 * most + 1)  # an object, a list, and a data URL for each
    shape = 'a JSON object {"images": ["<base64>", …]} is expected'
    if not isinstance(document, dict) or set(document) != {"images"} or not isinstance(document["images"], list):
        raise MalformedRequest(f"{shape}, and nothing else in it")
    encoded = document["images"]
    if not encoded:
        raise MalformedRequest("images is empty: send at least one")
    refuse_too_many(len(encoded), most)
    images = []
    for index, text in enumerate(encoded):
        if not isinstance(text, str):
            raise MalformedRequest(f"images[{index}] is not a string: {shape}", _place(index, encoded))
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            images.append(base64.b64decode(b"".join(text.encode("ascii").split()), validate=True))
        except (binascii.Error, ValueError) as error:
            raise MalformedRequest(f"images[{index}] is not base64: {error}", _place(index, encoded)) from None
    return images
