"""Many clients at once, each asking again as soon as it is answered, and what became of each request."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: str
    body: bytes
    seconds: float  # from its request

    @property
    def is_last(self) -> bool:
        """The connection ends with it."""
        return "connection: close" in self.head


@dataclass
class Load:
    """The clients send the requests in turn. `kept` connections carry many; else every request has one of its own."""

    address: str
    requests: Sequence[bytes]
    clients: int = 32
    kept: bool = True
    on_answer: Callable[[int, Answer], None] = lambda *_: None  # which request, and its answer
    answered: int = 0
    refused: int = 0  # connections
    lost: list[str] = field(default_factory=list)  # requests that were sent and not answered
    stopped: bool = False

    async def run(self) -> None:
        """Until it is stopped, or no client can connect any more."""
        self._turns = itertools.cycle(range(len(self.requests)))
        await asyncio.gather(*(self._client() for _ in range(self.clients)))

    async def _client(self) -> None:
        at = urlsplit(self.address)
        while not self.stopped:
            try:
                reader, writer = await asyncio.open_connection(at.hostname, at.port)
            except OSError:
                self.refused += 1
                return
            try:
                while not self.stopped:
                    which = next(self._turns)
                    writer.write(self.requests[which])
                    answer = await _read(reader)
                    self.answered += 1
                    self.on_answer(which, answer)
                    if answer.is_last or not self.kept:
                        break
            except (OSError, EOFError) as error:
                self.lost.append(repr(error))
            finally:
                writer.close()


async def _read(reader: asyncio.StreamReader) -> Answer:
    start = time.perf_counter()
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    body = await reader.readexactly(length)
    return Answer(int(head.split()[1]), head, body, time.perf_counter() - start)


def post(path: str, body: bytes, kind: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: graft\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
