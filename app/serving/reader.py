"""The bytes of a connection → requests, one after another.

httptools, the parser of uvicorn too, judges every byte. It does not say at which byte a request ends, so it is fed no
further than one can end: to the end of a head, of a body of known length, of a chunk, or of a line between chunks.
"""

import re
from dataclasses import dataclass

import httptools

MAX_HEAD = 64 << 10  # bytes; also of chunk headers and trailers since the last bytes of a body
_END_OF_HEAD = b"\r\n\r\n"
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)

Headers = list[tuple[bytes, bytes]]


class Malformed(Exception):
    """Not HTTP."""


class TooLarge(Exception):
    """A head, or what surrounds the chunks of a body, is larger than MAX_HEAD."""


@dataclass(slots=True)
class Head:
    raw: bytes  # as it was sent
    method: bytes
    target: bytes
    headers: Headers  # names in lower case
    version: str
    keep_alive: bool

    def require_valid_target(self) -> None:
        """Raises Malformed for a target that uvicorn could not read."""
        try:
            httptools.parse_url(self.target).path.decode("ascii")
        except (httptools.HttpParserError, UnicodeDecodeError, AttributeError):
            raise Malformed from None


class Reader:
    """Call `read_head` until it returns a head, then `read_body` until the request is `complete`, and so on."""

    def __init__(self) -> None:
        self._unread, self._at = b"", 0  # bytes, and how many of them have been read
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._parsed = 0  # bytes of an incomplete head that the parser has seen
        self._target, self._headers = b"", list[tuple[bytes, bytes]]()
        self._head_ended = self._request_ended = self._keep_alive = False  # according to the parser
        self._length = 0  # bytes that are left of a body of known length; -1: it comes in chunks
        self._line, self._chunk_began = b"", False  # what has arrived of a line between chunks; it began a chunk
        self._chunk_left = 0  # bytes
        self._around_chunks = 0  # bytes of chunk headers and trailers since the last bytes of a body
        self.complete = True  # the last request was read to its end

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._parsed > 0

    @property
    def has_unread(self) -> bool:
        return self._at < len(self._unread)

    @property
    def has_unread_head(self) -> bool:
        return self._unread.find(_END_OF_HEAD, self._at) >= 0

    def add(self, data: bytes) -> None:
        self._unread = self._unread[self._at :] + data if self._at < len(self._unread) else data
        self._at = 0

    def close(self) -> None:
        """Breaks the cycle of references with the parser."""
        self._parser = None

    def read_head(self) -> Head | None:
        """The next request's head, or None until all of it has arrived."""
        if self._unread[self._at : self._at + 1] in (b"\r", b"\n"):  # blank lines may precede a head
            self._unread, self._at = self._unread[self._at :].lstrip(b"\r\n"), 0
        unread, start = self._unread, self._at
        # The end may lie across two segments.
        end = unread.find(_END_OF_HEAD, start + max(0, self._parsed - 3), start + MAX_HEAD) + len(_END_OF_HEAD)
        is_whole = end >= len(_END_OF_HEAD)
        if not is_whole:
            end = len(unread)
            if end - start >= MAX_HEAD:
                raise TooLarge
            if end == start:
                return None
        self._feed(unread[start + self._parsed : end])
        if self._head_ended != is_whole:
            raise Malformed
        self._parsed = end - start
        return self._ended_head(unread[start:end]) if is_whole else None

    def read_body(self) -> bytes:
        """What has arrived of the rest of the body, as it was sent; empty if nothing has."""
        if self._length >= 0:
            piece = self._unread[self._at : self._at + self._length]
            self._at += len(piece)
            self._length -= len(piece)
            self._feed(piece)
            self.complete = self._request_ended
            if self._length == 0 and not self.complete:
                raise Malformed
            return piece
        unread, start, end = self._unread, self._at, self._at
        while end < len(unread) and not self._request_ended:
            begin, end = end, min(len(unread), end + self._chunk_left)
            if end > begin:  # at once: a chunk may consist of line ends
                self._chunk_left -= end - begin
                self._feed(unread[begin:end])
                continue
            end = unread.find(b"\n", begin) + 1 or len(unread)
            self._around_chunks += end - begin
            self._feed_line(unread[begin:end])
            if self._around_chunks >= MAX_HEAD:
                raise TooLarge
        self._at, self.complete = end, self._request_ended
        return unread[start:end]

    def _feed_line(self, piece: bytes) -> None:
        self._line += piece
        self._feed(piece)
        if self._chunk_began:
            self._chunk_left = int(self._line.partition(b";")[0], 16)  # the parser has found it valid
        if self._chunk_began or piece.endswith(b"\n"):
            self._line, self._chunk_began = b"", False

    def _ended_head(self, raw: bytes) -> Head:
        parser = self._parser
        assert parser is not None
        method = parser.get_method()
        if parser.should_upgrade():
            # There is no protocol to upgrade to, and parsers stop reading at the end of such a head.
            without = _UPGRADE.sub(b"", raw)
            if method == b"CONNECT" or without == raw:
                raise Malformed
            self._parser = httptools.HttpRequestParser(self)
            self._feed(without)
            return self._ended_head(without)
        self._at, self._parsed, self._around_chunks = self._at + self._parsed, 0, 0
        self.complete = self._request_ended
        headers, self._length = self._headers, 0
        for name, value in headers:
            if name == b"content-length":
                self._length = int(value)
            elif name == b"transfer-encoding":
                self._length = -1
        return Head(
            raw=raw,
            method=method,
            target=self._target,
            headers=headers,
            version=parser.get_http_version(),
            keep_alive=self._keep_alive,
        )

    def _feed(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # `_ended_head` deals with it
        except httptools.HttpParserError:
            raise Malformed from None

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self._target, self._headers, self._head_ended, self._request_ended = b"", [], False, False

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._head_ended, self._keep_alive = True, self._parser.should_keep_alive()  # which it forgets afterwards

    def on_chunk_header(self) -> None:
        self._chunk_began = True

    def on_body(self, body: bytes) -> None:
        self._around_chunks = 0

    def on_message_complete(self) -> None:
        self._request_ended = True
