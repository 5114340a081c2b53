"""multipart/form-data → the files in it, under any field name: parts with a file name, or an image's content type.

A form as clients write it is cut at its boundaries, all at once. One that is odd in any way goes to python-multipart's
parser, which takes several times as long and knows every way of writing one. A test holds both to the same files.
"""

import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from app.errors import MalformedRequest, TooManyImages

_MAX_HEADER_BYTES = 4 << 10  # of one part
_MOST_OTHER_FIELDS = 100  # parts that are not files
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70})(?:[\s;]|$))', re.IGNORECASE)
_FILE_NAME = re.compile(r";\s*filename\*?\s*=", re.IGNORECASE)
_FIELD_NAME = re.compile(r';\s*name="?([^";]*)', re.IGNORECASE)
# A file as curl, browsers, httpx and requests write its part; names without quotes or backslashes in them.
_PLAIN_FILE = re.compile(
    rb'\r\nContent-Disposition: form-data; name="[^"\\\r\n]{0,200}"; filename="[^"\\\r\n]{0,500}"'
    rb"(?:\r\nContent-Type: [!-~]{1,200})?\r\n\r\n",
    re.IGNORECASE,
)


def files_of(body: bytes, content_type: str, most: int) -> list[bytes]:
    """At least one; as soon as there are more than `most`, that is refused."""
    boundary = boundary_of(content_type)
    if boundary is None:
        raise MalformedRequest("multipart/form-data without a boundary of 1 to 70 characters in its Content-Type")
    files = plain_files(body, boundary, most)
    return parsed_files(body, boundary, most) if files is None else files


def plain_files(body: bytes, boundary: bytes, most: int) -> list[bytes] | None:
    """None where it is no plain form of at most `most` files, and nothing else in it."""
    delimiter = b"\r\n--" + boundary
    if not body.startswith(delimiter[2:]):
        return None
    files: list[bytes] = []
    at = len(delimiter) - 2
    while not body.startswith(b"--", at):
        head = _PLAIN_FILE.match(body, at)
        if head is None or len(files) == most:
            return None
        end = body.find(delimiter, head.end() - 2)
        if end < head.end():
            return None
        files.append(body[head.end() : end])
        at = end + len(delimiter)
    return files if files and body[at + 2 :] in (b"", b"\r\n") else None


def boundary_of(content_type: str) -> bytes | None:
    found = _BOUNDARY.search(content_type)
    return None if found is None else (found[1] or found[2]).encode("latin-1", "replace")


def parsed_files(body: bytes, boundary: bytes, most: int) -> list[bytes]:
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
            refuse_too_many(len(self.images) + 1, self._most)
            self.images.append(b"".join(self._spans))
        else:
            name = _FIELD_NAME.search(disposition)
            self.fields.append(name[1][:100] if name else "?")
            if len(self.fields) > _MOST_OTHER_FIELDS:
                raise MalformedRequest(f"more than {_MOST_OTHER_FIELDS} parts of the form are not files")

    def _end(self) -> None:
        self.ended = True


def refuse_too_many(count: int, most: int) -> None:
    if count > most:
        raise TooManyImages(f"more images than the {most:,} allowed in one request")
