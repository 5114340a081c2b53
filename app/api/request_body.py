"""A request's body → its encoded images. Limits are checked first: a body that would be refused is not read."""

import asyncio
import base64
import binascii
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Query, Request
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.api.multipart import files_of, refuse_too_many
from app.errors import BodyTooLarge, Faults, MalformedRequest, TooManyImages, UnsupportedMediaType
from app.settings import Settings
from app.telemetry.requests import current_record

Parsed = TypeVar("Parsed")
_READ = {b"content-type", b"content-encoding", b"content-length"}
_FORM, _JSON = "multipart/form-data", "application/json"
_PARSED_AT_ONCE = 256 << 10  # bytes of a body; larger ones are parsed in a thread


@dataclass(frozen=True, slots=True)
class RequestImages:
    """The images of a request, as files in the order of its body."""

    files: Sequence[bytes]
    faults: Faults | None  # of a partial request: what is wrong with some of them already; else None

    def __len__(self) -> int:
        return len(self.files)


async def read_images(request: Request, faults: Faults | None = None) -> list[bytes]:
    """In the order of the body; at least one. With `faults` what is wrong with a single image is added to it."""
    settings: Settings = request.app.state.settings
    media_type, declared, body = await read_body(request, (_FORM, "image/*", _JSON))
    return await parsed(lambda body: images_of(media_type, declared, body, settings.max_images, faults=faults), body)


def images_of(media_type: str, declared: str, body: bytes, most: int, faults: Faults | None = None) -> list[bytes]:
    """`declared` is the Content-Type with its parameters."""
    if media_type == _FORM:
        images = files_of(body, declared, most)
    elif media_type == _JSON:
        images = _from_json(body, most, faults)
    elif media_type.startswith("image/"):
        images = [body]
    else:
        raise UnsupportedMediaType(declared)
    for index, image in enumerate(images):
        if not image and (faults is None or index not in faults):
            _refuse(MalformedRequest("the image is empty: zero bytes", _index(index, images)), index, faults)
    return images


def _refuse(error: MalformedRequest, index: int, faults: Faults | None) -> None:
    """Refuses one image, or without `faults` the whole request."""
    if faults is None:
        raise error
    faults[index] = error


async def read_body(request: Request, accepted: Sequence[str]) -> tuple[str, str, bytes]:
    """(media type, Content-Type header, body). Other types and bodies over the limit are refused unread."""
    choices = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
    headers = _headers(request)
    declared = headers.get(b"content-type")
    if declared is None:
        raise UnsupportedMediaType(f"no Content-Type: send {choices}")
    media_type = declared.partition(";")[0].strip().lower()
    if media_type not in accepted and f"{media_type.partition('/')[0]}/*" not in accepted:
        raise UnsupportedMediaType(f"Content-Type {declared[:100]!r} is not supported: send {choices}")
    return media_type, declared, await _within_limits(request, headers)


Partial = Annotated[bool, Query(description="answer the good images: in the place of each bad one stands its problem")]


async def _images(request: Request, partial: Partial = False) -> RequestImages:
    faults: Faults | None = {} if partial else None
    return RequestImages(await read_images(request, faults), faults)


Images = Annotated[RequestImages, Depends(_images)]


async def parsed(parse: Callable[..., Parsed], body: bytes, *arguments: object) -> Parsed:
    """Parse large bodies in a thread, so that they do not hold up the event loop."""
    return parse(body, *arguments) if len(body) < _PARSED_AT_ONCE else await asyncio.to_thread(parse, body, *arguments)


async def read(request: Request) -> bytes:
    """The body, of any type; raises BodyTooLarge above the limit."""
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
        if not body and not more:  # most bodies are one chunk
            return chunk
        body += chunk
        if not more:
            return bytes(body)


def _index(index: int, images: Sequence[object]) -> int | None:
    """For an error: the faulty image's index, or None if there is only one."""
    return index if len(images) > 1 else None


def json_of(body: bytes, most: int) -> Any:
    """The document. One of more than `most` values is refused before it is built, which costs far more than its bytes.

    Commas and brackets are counted, even inside strings: no valid body has any there except the comma of a data URL.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > most:
        raise TooManyImages("the JSON has more values than one request may need")
    try:
        return from_json(body.removeprefix(BOM_UTF8))  # twice as fast as json.loads with many numbers
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from None


def numbers_of(values: Any, kinds: Collection[type] = (int, float)) -> np.ndarray:
    """Nested lists of one depth → float64, exact below 2⁵³. Raises ValueError if a value is of another type.

    numpy by itself converts true to 1, and gives every number as much memory as the longest string beside it.
    """
    array = np.array(values, object)
    if not set(kinds).issuperset(map(type, array.ravel().tolist())):
        raise ValueError("not all values are of the expected types")
    try:
        return array.astype(np.float64)
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _from_json(body: bytes, most: int, faults: Faults | None) -> list[bytes]:
    document = json_of(body, 2 * most + 1)  # an object, a list, and a data URL's comma for each image
    shape = 'a JSON object {"images": ["<base64>", …]} is expected'
    if not isinstance(document, dict) or set(document) != {"images"} or not isinstance(document["images"], list):
        raise MalformedRequest(f"{shape}, without other fields")
    encoded = document["images"]
    if not encoded:
        raise MalformedRequest("images is empty: send at least one image")
    refuse_too_many(len(encoded), most)
    images = []
    for index, text in enumerate(encoded):
        try:
            if not isinstance(text, str):
                raise MalformedRequest(f"images[{index}] is not a string: {shape}", _index(index, encoded))
            if text.startswith("data:"):
                text = text.partition(",")[2]
            images.append(file_of_base64(text, f"images[{index}]", _index(index, encoded)))
        except MalformedRequest as error:
            _refuse(error, index, faults)
            images.append(b"")
    return images


def file_of_base64(text: str, name: str, index: int | None) -> bytes:
    """White space is ignored, since many programs fold lines. `name` is what an error calls it."""
    try:
        return base64.b64decode(b"".join(text.encode("ascii").split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequest(f"{name} is not base64: {error}", index) from None
