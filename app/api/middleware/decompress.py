"""Bodies that come compressed, under /v2, where clients may."""

import asyncio
import zlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.middleware.root_path import in_protocol
from app.errors import BodyTooLarge, MalformedRequest

_WINDOW = {b"gzip": 31, b"deflate": 15}  # zlib's name for each format
_PIECE = 1 << 18  # bytes; a millisecond's work


class Unpack:
    """What is within sees such a body as it was before, piece by piece: its limits hold while it is unpacked."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """`most` bytes may come; how many they may become is for whoever reads them to say."""
        self.app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and in_protocol(scope):
            codings = [value.strip().lower() for name, value in scope["headers"] if name == b"content-encoding"]
            if len(codings) == 1 and codings[0] in _WINDOW:
                scope["headers"] = [
                    (name, value)
                    for name, value in scope["headers"]
                    if name not in (b"content-encoding", b"content-length")
                ]
                receive = _Unpacked(receive, codings[0], self._most).receive
        await self.app(scope, receive, send)


class _Unpacked:
    def __init__(self, receive: Receive, coding: bytes, most: int) -> None:
        self._receive, self._coding, self._most = receive, coding.decode(), most
        self._engine = zlib.decompressobj(_WINDOW[coding])
        self._rest, self._arrived, self._more, self._ended = b"", 0, True, False

    async def receive(self) -> Message:
        while not self._ended:
            if self._more and not self._rest:
                message = await self._arriving()
                if message["type"] != "http.request":
                    return message
            try:
                piece = await asyncio.to_thread(self._engine.decompress, self._rest, _PIECE)
            except zlib.error as error:
                raise MalformedRequest(f"the body is not {self._coding}: {error}") from None
            self._rest = self._engine.unconsumed_tail
            if self._engine.eof:
                await self._end()
            elif not (piece or self._rest or self._more):
                raise MalformedRequest(f"the body is not {self._coding}: it ends too early")
            if piece or self._ended:
                return {"type": "http.request", "body": piece, "more_body": not self._ended}
        return await self._receive()

    async def _arriving(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._rest, self._more = message.get("body", b""), message.get("more_body", False)
            self._arrived += len(self._rest)
            if self._arrived > self._most:
                raise BodyTooLarge(f"the body is more than the {self._most:,} bytes allowed")
        return message

    async def _end(self) -> None:
        """One stream is one body: looking for others would let a body of empty ones cost time without end."""
        self._ended, after = True, self._engine.unused_data
        while self._more and not after:
            if (await self._arriving())["type"] != "http.request":
                return
            after = self._rest
        if after:
            raise MalformedRequest(f"the body goes on after the end of its {self._coding}")
