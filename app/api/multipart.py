"""multipart/form-data → its files: the parts with a file name or with an image's content type, under any field name.

Forms as common clients write them are split at their boundaries. All others go to python-multipart's parser, which
takes several times as long and reads every valid form. A test checks that both give the same files.
"""

import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from app.errors import MalformedRequest, TooManyImages

_MAX_HEADER_BYTES = 4 << 10  # of one part
_MAX_OTHER_FIELDS = 100  # parts that are not files
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70})(?:[\s;]|$))', re.IGNORECASE)
_FILE_NAME = re.compile(r";\s*filename\*?\s*=", re.IGNORECASE)
_FIELD_NAME = re.compile(r';\s*name="?([^";]*)', re.IGNORECASE)
# A file's part as curl, browsers, httpx and requests write it; its names have no quotes or backslashes.
_PLAIN_FILE = re.compile(
    rb'\r\nContent-Disposition: form-data; name="[^"\\\r\n]{0,200}"; filename="[^"\\\r\n]{0,500}"'
    rb"(?:\r\nContent-Type: [!-~]{1,200})?\r\n\r\n",
    re.IGNORECASE,
)


def files_of(body: bytes, content_type: str, most: int) -> list[bytes]:
    """At least one file; more than `most` are refused."""
    boundary = boundary_of(content_type)
    if boundary is None:
        raise MalformedRequest("multipart/form-data without a boundary of 1 to 70 characters in its Content-Type")
    files = plain_files(body, boundary, most)
    return parsed_files(body, boundary, most) if files is None else files


def plain_files(body: bytes, boundary: bytes, most: int) -> list[bytes] | None:
    """None unless the form is plain, with at most `most` files and no other fields."""
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
    match = _BOUNDARY.search(content_type)
    return None if match is None else (match[1] or match[2]).encode("latin-1", "replace")


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
        raise MalformedRequest(f"the form has no file (other fields: {fields}): send -F image=@FILE")
    return form.images


class _Form:
    """Collects files and field names from the parser's callbacks."""

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
            if len(self.fields) > _MAX_OTHER_FIELDS:
                raise MalformedRequest(f"the form has more than {_MAX_OTHER_FIELDS} fields that are not files")

    def _end(self) -> None:
        self.ended = True


def refuse_too_many(count: int, most: int) -> None:
    if count > most:
        raise TooManyImages(f"more images than the {most:,} allowed in one request")
