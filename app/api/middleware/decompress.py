"""Decompresses request bodies under /v2, whose clients may compress them."""

import asyncio
import zlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.middleware.root_path import in_protocol
from app.errors import BodyTooLarge, MalformedRequest

_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}  # zlib's code for each format
_CHUNK = 1 << 18  # bytes; takes a millisecond


class Decompress:
    """The app receives the decompressed body chunk by chunk, so its limits hold while the body is decompressed."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """`most` limits the compressed bytes; the reader of the body limits the decompressed ones."""
        self.app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and in_protocol(scope):
            codings = [value.strip().lower() for name, value in scope["headers"] if name == b"content-encoding"]
            if len(codings) == 1 and codings[0] in _WINDOW_BITS:
                scope["headers"] = [
                    (name, value)
                    for name, value in scope["headers"]
                    if name not in (b"content-encoding", b"content-length")
                ]
                receive = _DecompressedBody(receive, codings[0], self._most).receive
        await self.app(scope, receive, send)


class _DecompressedBody:
    def __init__(self, receive: Receive, coding: bytes, most: int) -> None:
        self._receive, self._coding, self._most = receive, coding.decode(), most
        self._decompressor = zlib.decompressobj(_WINDOW_BITS[coding])
        self._input, self._received, self._more_body, self._ended = b"", 0, True, False

    async def receive(self) -> Message:
        while not self._ended:
            if self._more_body and not self._input:
                message = await self._receive_input()
                if message["type"] != "http.request":
                    return message
            try:
                chunk = await asyncio.to_thread(self._decompressor.decompress, self._input, _CHUNK)
            except zlib.error as error:
                raise MalformedRequest(f"the body is not {self._coding}: {error}") from None
            self._input = self._decompressor.unconsumed_tail
            if self._decompressor.eof:
                await self._end()
            elif not (chunk or self._input or self._more_body):
                raise MalformedRequest(f"the body is not {self._coding}: it ends too early")
            if chunk or self._ended:
                return {"type": "http.request", "body": chunk, "more_body": not self._ended}
        return await self._receive()

    async def _receive_input(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._input, self._more_body = message.get("body", b""), message.get("more_body", False)
            self._received += len(self._input)
            if self._received > self._most:
                raise BodyTooLarge(f"the body is more than the {self._most:,} bytes allowed")
        return message

    async def _end(self) -> None:
        """A body is one compressed stream. Reading further streams would let empty ones cost time without end."""
        self._ended, trailing = True, self._decompressor.unused_data
        while self._more_body and not trailing:
            if (await self._receive_input())["type"] != "http.request":
                return
            trailing = self._input
        if trailing:
            raise MalformedRequest(f"the body goes on after the end of its {self._coding}")
