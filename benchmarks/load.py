"""Load: wrk for a steady one, many new connections at once for a burst, one quiet client for what others notice."""

import json
import math
import os
import selectors
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.home import Skipped
from benchmarks.workloads import Request

SCRIPT = Path(__file__).parent / "rotate.lua"
TIMEOUT_S = 60
PROBE_S = 0.02  # between two questions of the quiet client


@dataclass(frozen=True)
class Seen:
    """By the clients; milliseconds. `errors` are broken connections, timeouts, and statuses that are not 2xx."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    most_ms: float
    errors: int


def wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise Skipped("wrk makes the load, and is not installed: `apt-get install wrk` on Debian and Ubuntu")
    return found


def write_requests(file: Path, requests: Iterable[Request]) -> None:
    """As rotate.lua reads them."""
    with file.open("wb") as out:
        for wire in (request.wire for request in requests):
            out.write(b"%010d" % len(wire) + wire)


def steady(port: int, requests: Path, connections: int, seconds: float, core: int) -> Seen:
    """One thread of wrk on `core`, each connection asking again as soon as it is answered."""
    command = ["taskset", "-c", str(core), wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}"]
    done = subprocess.run(
        command, env={**os.environ, "REQUESTS": str(requests)}, stdout=subprocess.PIPE, text=True, check=True
    )
    return parsed(done.stdout)


def parsed(printed: str) -> Seen:
    """Of what rotate.lua prints, in microseconds, after wrk's own lines."""
    output = json.loads(printed.strip().splitlines()[-1])
    return Seen(
        requests=output["requests"],
        per_second=output["requests"] / (output["microseconds"] / 1e6),
        p50_ms=output["p50"] / 1000,
        p99_ms=output["p99"] / 1000,
        most_ms=output["max"] / 1000,
        errors=sum(output[kind] for kind in ("connect", "read", "write", "status", "timeout")),
    )


class Probe:
    """Asks for `path` over one connection, again and again, while something else goes on: what others notice of it."""

    def __init__(self, port: int, path: str) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        self._port, self._end = port, threading.Event()
        self.times_ms: list[float] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _ask(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S) as connection:
            while not self._end.wait(PROBE_S):
                start = time.perf_counter()
                connection.sendall(self._request)
                answer = Answer()
                while not answer.complete:
                    answer.feed(connection.recv(65536))
                self.times_ms.append((time.perf_counter() - start) * 1000)


def answered(port: int, request: Request) -> tuple[int, bytes]:
    """(status, body) over a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(request.wire)
        answer = Answer()
        while not answer.complete:
            answer.feed(connection.recv(1 << 20))
        return answer.status, answer.body


def burst(port: int, requests: Sequence[Request], times: int, pause_s: float = 0.05) -> Seen:
    """All requests at once, each over a new connection, from connect to the whole answer; `times` over."""
    found: list[float] = []
    errors, spent = 0, 0.0
    for _ in range(times):
        latencies, failed, seconds = _at_once(port, [request.wire for request in requests])
        found += latencies
        errors, spent = errors + failed, spent + seconds
        time.sleep(pause_s)
    if not found:
        raise Skipped("nothing of a burst was answered")
    return Seen(
        requests=len(found),
        per_second=len(found) / spent,
        p50_ms=percentile(found, 50),
        p99_ms=percentile(found, 99),
        most_ms=max(found),
        errors=errors,
    )


class _Client(NamedTuple):
    connection: socket.socket
    wire: bytes
    began: float
    answer: "Answer"


def _at_once(port: int, wires: Sequence[bytes]) -> tuple[list[float], int, float]:
    """(milliseconds of each that was answered with 2xx, how many were not, seconds until the last)"""
    latencies, errors = [], 0
    start = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for wire in wires:
            connection = socket.socket()
            connection.setblocking(False)
            client = _Client(connection, wire, time.perf_counter(), Answer())
            connection.connect_ex(("127.0.0.1", port))
            selector.register(connection, selectors.EVENT_WRITE, client)
        while selector.get_map():
            for key, mask in selector.select(TIMEOUT_S):
                client = key.data
                try:
                    if mask & selectors.EVENT_WRITE:
                        client.connection.sendall(client.wire)  # small enough for a socket's buffer
                        selector.modify(client.connection, selectors.EVENT_READ, client)
                        continue
                    client.answer.feed(client.connection.recv(65536))
                    if not client.answer.complete:
                        continue
                    right = 200 <= client.answer.status < 300
                except OSError:
                    right = False
                selector.unregister(client.connection)
                client.connection.close()
                if right:
                    latencies.append((time.perf_counter() - client.began) * 1000)
                else:
                    errors += 1
    return latencies, errors, time.perf_counter() - start


class Answer:
    """Bytes until a whole answer is there: by its Content-Length, or its last chunk."""

    def __init__(self) -> None:
        self._bytes, self._head_end, self._length = bytearray(), -1, -1

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionResetError("the connection ended before the answer did")
        self._bytes += data
        if self._head_end < 0 and (end := self._bytes.find(b"\r\n\r\n")) >= 0:
            self._head_end = end + 4
            for line in bytes(self._bytes[:end]).lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    self._length = int(line.partition(b":")[2])

    @property
    def complete(self) -> bool:
        if self._head_end < 0:
            return False
        if self._length >= 0:
            return len(self._bytes) >= self._head_end + self._length
        return self._bytes.endswith(b"0\r\n\r\n")

    @property
    def status(self) -> int:
        return int(self._bytes[9:12])

    @property
    def body(self) -> bytes:
        rest = bytes(self._bytes[self._head_end :])
        if self._length >= 0:
            return rest
        joined = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size.partition(b";")[0], 16)
            joined, rest = joined + rest[:length], rest[length + 2 :]
        return joined


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
