"""A request's body → the encoded images in it. Limits come first: nothing is read that would be refused."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from app.errors import BodyTooLarge, MalformedRequest, TooManyImages, UnsupportedMediaType
from app.observability import facts
from app.settings import Settings

Parsed = TypeVar("Parsed")
_FORM, _JSON = "multipart/form-data", "application/json"
_MAX_HEADER_BYTES = 4 << 10  # of one part of a form
_MOST_OTHER_FIELDS = 100  # parts of a form that are not files
_PARSED_AT_ONCE = 256 << 10  # bytes of a body; larger ones are parsed in a thread
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70})(?:[\s;]|$))', re.IGNORECASE)
_FILE_NAME = re.compile(r";\s*filename\*?\s*=", re.IGNORECASE)
_FIELD_NAME = re.compile(r';\s*name="?([^";]*)', re.IGNORECASE)


async def read_images(request: Request) -> list[bytes]:
    """In the order they came; at least one."""
    settings: Settings = request.app.state.settings
    kind, body = await read_body(request, (_FORM, "image/*", _JSON))
    if kind == _FORM:
        images = await parsed(_from_form, body, _boundary(request.headers["content-type"]), settings.max_images)
    elif kind == _JSON:
        images = await parsed(_from_json, body, settings.max_images)
    else:
        images = [body]
    for index, image in enumerate(images):
        if not image:
            raise MalformedRequest("the image is empty: zero bytes", _place(index, images))
    return images


async def read_body(request: Request, accepted: Sequence[str]) -> tuple[str, bytes]:
    """(content type, body), of one of the accepted types, within the limit. Refused before it is read."""
    settings: Settings = request.app.state.settings
    told = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
    declared = request.headers.get("content-type")
    if declared is None:
        raise UnsupportedMediaType(f"no Content-Type: send {told}")
    kind = declared.partition(";")[0].strip().lower()
    if kind not in accepted and f"{kind.partition('/')[0]}/*" not in accepted:
        raise UnsupportedMediaType(f"Content-Type {declared[:100]!r} is not one we read: send {told}")
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {coding[:100]!r}: send the body uncompressed; images already are")
    body = await _read(request, settings.max_body_bytes)
    facts().body_read = perf_counter()
    return kind, body


Images = Annotated[list[bytes], Depends(read_images)]


async def parsed(parse: Callable[..., Parsed], body: bytes, *rest: object) -> Parsed:
    """Large bodies off the event loop, so that nobody else waits for them."""
    return parse(body, *rest) if len(body) < _PARSED_AT_ONCE else await asyncio.to_thread(parse, body, *rest)


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise BodyTooLarge(f"the body is {int(declared[:20]):,} bytes; at most {limit:,} are allowed")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"the body is more than the {limit:,} bytes allowed")
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
        raise TooManyImages("the JSON has more values in it than the images allowed in one request can need")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from None


def _from_json(body: bytes, most: int) -> list[bytes]:
    document = json_of(body, 2 * most + 1)  # an object, a list, and a data URL for each
    shape = 'a JSON object {"images": ["<base64>", …]} is expected'
    if not isinstance(document, dict) or set(document) != {"images"} or not isinstance(document["images"], list):
        raise MalformedRequest(f"{shape}, and nothing else in it")
    encoded = document["images"]
    if not encoded:
        raise MalformedRequest("images is empty: send at least one")
    _refuse_too_many(len(encoded), most)
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


def _boundary(content_type: str) -> bytes:
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise MalformedRequest("multipart/form-data without a boundary of 1 to 70 characters in its Content-Type")
    return (found[1] or found[2]).encode("latin-1", "replace")


def _from_form(body: bytes, boundary: bytes, most: int) -> list[bytes]:
    """The parts that are files (they have a file name, or an image's content type), under any field name."""
    form = _Form(most)
    parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequest(f"the form does not parse: {error}") from None
    if not form.ended:
        raise MalformedRequest("the form ends before its closing boundary")
    if not form.images:
        fields = ", ".join(form.fields[:10]) or "none"
        raise MalformedRequest(f"no file among the form's parts (other fields: {fields}): send -F image=@FILE")
    return form.images


class _Form:
    """What the parser tells of, part by part."""

    def __init__(self, most: int) -> None:
        self.images: list[bytes] = []
        self.fields: list[str] = []
        self.ended = False
        self._most = most
        self._name, self._value, self._headers = bytearray(), bytearray(), dict[str, str]()
        self._spans: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, a, b: self._grow(self._name, data[a:b]),
            "on_header_value": lambda data, a, b: self._grow(self._value, data[a:b]),
            "on_header_end": self._header_end,
            "on_part_data": lambda data, a, b: self._spans.append(data[a:b]),
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers, self._spans = {}, []

    def _grow(self, text: bytearray, more: bytes) -> None:
        text += more
        if len(text) > _MAX_HEADER_BYTES:
            raise MalformedRequest(f"a part's header is longer than {_MAX_HEADER_BYTES:,} bytes")

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name.clear()
        self._value.clear()

    def _part_end(self) -> None:
        disposition = self._headers.get("content-disposition", "")
        if _FILE_NAME.search(disposition) or self._headers.get("content-type", "").lower().startswith("image/"):
            _refuse_too_many(len(self.images) + 1, self._most)
            self.images.append(b"".join(self._spans))
        else:
            name = _FIELD_NAME.search(disposition)
            self.fields.append(name[1][:100] if name else "?")
            if len(self.fields) > _MOST_OTHER_FIELDS:
                raise MalformedRequest(f"more than {_MOST_OTHER_FIELDS} parts of the form are not files")

    def _end(self) -> None:
        self.ended = True


def _refuse_too_many(count: int, most: int) -> None:
    if count > most:
        raise TooManyImages(f"more images than the {most:,} allowed in one request")
