"""The fast path answers plain requests and hands all others over untouched; over real sockets."""

import asyncio
import gc
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from support import serving
from uvicorn.server import ServerState

from app.api.call import Plan
from app.api.fast_path import FastPath, Headers, PendingRequest, PlainRequest, infer_model
from app.api.middleware import access
from app.api.middleware.body_limits import TOO_MANY_CONNECTIONS
from app.api.routes import operations
from app.api.v2 import routes as oip
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.inference.admission import Bytes
from app.inference.answer import OutputRequest, Outputs, answer
from app.inference.batcher import Batcher
from app.main import create_app
from app.serving.connection import Connection, connection_factory
from app.serving.exchange import FastExchange
from app.settings import Settings
from app.telemetry.logs import LogRequests, RequestLog
from app.telemetry.metrics import Metrics
from app.telemetry.requests import CLIENT_DISCONNECTED, STARTED_AT, RequestRecord

IMAGE = png(garment("bag"))
RAW = {"content-type": "image/png"}


def form(*files: bytes) -> tuple[dict[str, str], bytes]:
    head = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i.png"\r\n\r\n'
    return {"content-type": "multipart/form-data; boundary=b"}, b"".join(head + f + b"\r\n" for f in files) + b"--b--"


class OrdinaryPath:
    """The ordinary path: an ASGI app that records the request it is handed."""

    def __init__(self) -> None:
        self.body: bytes | None = None
        self.scope: Scope = {}
        self.left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.body, more = scope, b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left = True
                return
            self.body, more = self.body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 299, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Line:
    """One connection to a service whose ordinary path is replaced by `ordinary`."""

    def __init__(self, app: FastAPI, keys: Sequence[str] = (), room: int = 10**9, most: int = 9) -> None:
        self.app, self.ordinary, self.counted = app, OrdinaryPath(), list[tuple[str | None, int]]()
        self.fast_path = app.state.fast_path
        inference = partial(oip.parse_small_infer, app.state.metrics, app.state.settings.max_images)
        request_log = Counted(self.counted)
        self.fast_path = FastPath(
            app, operations.BY_PATH, inference, Bytes(room), app.state.deadlines, access.Keys(keys), request_log
        )
        config = uvicorn.Config(self.ordinary, ws="none", log_config=None)  # type: ignore[arg-type]
        config.load()
        self.state = ServerState()
        self._protocol = partial(
            connection_factory(self.fast_path, 5, 5, most), config=config, server_state=self.state, app_state={}
        )

    async def __aenter__(self) -> "Line":
        self._life = self.app.router.lifespan_context(self.app)
        await self._life.__aenter__()
        self._server = await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1")  # type: ignore[arg-type]
        self.address = self._server.sockets[0].getsockname()
        self.reader, self.writer = await asyncio.open_connection(*self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        while self.state.connections or self.state.tasks:  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.005)
        self._server.close()
        await self._life.__aexit__(None, None, None)
        assert self.fast_path.room.held == 0
        assert self.fast_path.predictor.admission.images == 0

    async def answer(self) -> Answer:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode().splitlines()
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return Answer(int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"])))


class Counted(RequestLog):
    def __init__(self, counted: list[tuple[str | None, int]]) -> None:
        super().__init__(Metrics(""))
        self._counted = counted

    def finished_without_context(
        self, scope: Scope, own_id: bytes, record: RequestRecord, status: int, seconds: float
    ) -> None:
        self._counted.append((record.operation, status))


def wire(headers: dict[str, str], body: bytes, target: str = "/v1/classify", start: str = "POST {} HTTP/1.1") -> bytes:
    headers = {"host": "x", "content-length": str(len(body))} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{start.format(target)}\r\n{head}\r\n".encode() + body


def answer_to(app: FastAPI, *pieces: bytes, pause: float = 0, **line: Any) -> tuple[Answer, Line]:
    """The answer to a request that is sent in pieces, and the connection it came by."""

    async def go() -> tuple[Answer, Line]:
        async with Line(app, **line) as there:
            for piece in pieces:
                there.writer.write(piece)
                await there.writer.drain()
                await asyncio.sleep(pause)
            return await there.answer(), there

    return asyncio.run(go())


@pytest.fixture
def app(models: Path) -> FastAPI:
    return create_app(Settings(models=models))


SMALL = [png(garment(kind).resize((4, 6))) for kind in GARMENTS]


@pytest.mark.parametrize("operation", ["classify", "encode", "reconstruct", "anomaly", "predict"])
@pytest.mark.parametrize(("headers", "body"), [(RAW, IMAGE), form(IMAGE), form(*SMALL), form(*SMALL * 5)])
def test_plain_requests_are_answered_here(app: FastAPI, operation: str, headers: dict[str, str], body: bytes) -> None:
    found, line = answer_to(app, wire(headers | {"x-request-id": "mine"}, body, f"/v1/{operation}"))
    assert (found.status, line.ordinary.body) == (200, None)
    assert line.counted == [(operation, 200)]
    assert line.state.total_requests == 1
    assert found.headers["x-request-id"] == "mine"
    assert {part.partition(";")[0] for part in found.headers["server-timing"].split(", ")} == {
        "queue", "decode", "run", "total",
    }  # fmt: skip
    assert len(json.loads(found.body)["results"]) == max(1, body.count(b"filename"))


PIXELS = bytes(range(24))  # of the tiny bundle's 6 × 4
INFER = "/v2/models/tiny/infer"
LENGTH = "inference-header-content-length"


CODE = [0.0] * 5  # an embedding of the tiny bundle


def question(**more: Any) -> tuple[dict[str, str], bytes]:
    image = {"name": "image", "shape": [1, 6, 4, 1], "datatype": "UINT8", "data": list(PIXELS)}
    return {}, json.dumps({"inputs": [image | more.pop("image", {})], **more}).encode()


def with_bytes(**more: Any) -> tuple[dict[str, str], bytes]:
    image = {"name": "image", "shape": [1, 6, 4, 1], "datatype": "UINT8", "parameters": {"binary_data_size": 24}}
    head = json.dumps({"inputs": [image], **more}).encode()
    return {LENGTH: str(len(head))}, head + PIXELS


@pytest.mark.parametrize("path", [INFER, "/v2/models/tiny/versions/1/infer"])
@pytest.mark.parametrize(("headers", "body"), [question(), question(id="mine"), with_bytes(), ({LENGTH: "0"}, PIXELS)])
def test_plain_pixels_of_the_protocol_are_answered_here(
    app: FastAPI, path: str, headers: dict[str, str], body: bytes
) -> None:
    found, line = answer_to(app, wire(headers, body, path))
    assert (found.status, line.ordinary.body, line.counted) == (200, None, [("infer", 200)])
    sentence = found.headers.get(LENGTH)
    output = json.loads(found.body[: int(sentence)] if sentence else found.body)
    assert (output["model_name"], output["model_version"], output.get("id")) == (
        "tiny",
        "1",
        "mine" if b"mine" in body else None,
    )


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v2/models/t%69ny/infer", *question()),
        ("/v2/models/none/infer", *question()),
        ("/v2/models/tiny/versions/9/infer", *question()),
        ("/v2/models/tiny", *question()),
        (INFER, *question(image={"shape": [2, 6, 4, 1]})),
        (INFER, *question(image={"name": "embedding"})),
        (INFER, *question(image={"datatype": "BYTES", "shape": [1], "data": ["AAAA"]})),
        (INFER, *question(outputs=[{"name": "nothing"}])),
        (INFER, {}, b"no JSON"),
        (INFER, {LENGTH: "9999"}, PIXELS),
    ],
)
def test_other_protocol_requests_are_handed_over_untouched(
    app: FastAPI, path: str, headers: dict[str, str], body: bytes
) -> None:
    found, line = answer_to(app, wire(headers, body, path))
    assert (found.status, line.ordinary.body, line.counted) == (299, body, [])


def test_the_root_path_may_precede_a_protocol_path(models: Path) -> None:
    app = create_app(Settings(models=models, root_path="/seen"))
    for path in (INFER, f"/seen{INFER}"):
        assert answer_to(app, wire(*question(), path))[0].status == 200
    assert answer_to(app, wire(*question(), f"/other{INFER}"))[0].status == 299


ALONE = "POST {} HTTP/1.1"


@pytest.mark.parametrize(
    ("headers", "body", "start"),
    [
        (RAW, IMAGE, "PUT {} HTTP/1.1"),
        (RAW, IMAGE, "POST {} HTTP/1.0"),
        (RAW, IMAGE, "POST {}%20 HTTP/1.1"),
        (RAW, IMAGE, "POST /v1/decode HTTP/1.1"),
        (RAW | {"content-encoding": "gzip"}, IMAGE, ALONE),
        (RAW | {"accept": "text/html"}, IMAGE, ALONE),
        (RAW | {"content-length": f"000000000{len(IMAGE)}"}, IMAGE, ALONE),
        (RAW | {"Content-Type": "image/gif"}, IMAGE, ALONE),
        (RAW, IMAGE[:-9], ALONE),
        (RAW, b"", ALONE),
        (RAW, b"GIF89a", ALONE),
        ({"content-type": "text/plain"}, IMAGE, ALONE),
        ({"content-type": "application/json"}, b'{"images": []}', ALONE),
        ({"content-type": "multipart/form-data"}, IMAGE, ALONE),
        ({"content-type": "multipart/form-data; boundary=c"}, form(IMAGE)[1], ALONE),
        (*form(IMAGE, IMAGE[:-9]), ALONE),
        (*form(IMAGE, b""), ALONE),
        (*form(*[IMAGE] * 200), ALONE),
    ],
)
def test_others_are_handed_over_untouched(app: FastAPI, headers: dict[str, str], body: bytes, start: str) -> None:
    found, line = answer_to(app, wire(headers, body, start=start))
    assert (found.status, line.ordinary.body, line.counted) == (299, body, [])
    path, _, query = start.format("/v1/classify").split()[1].partition("?")
    output = line.ordinary.scope
    assert (output["path"], output["query_string"]) == (path.replace("%20", " "), query.encode())
    assert output["headers"] == [
        (name.lower().encode(), value.encode())
        for name, value in ({"host": "x", "content-length": str(len(body))} | headers).items()
    ]


def test_a_handed_over_request_keeps_its_start_time(app: FastAPI) -> None:
    _, line = answer_to(app, wire(RAW, IMAGE[:-9]))
    assert line.ordinary.scope["state"].keys() == {STARTED_AT}


def test_a_request_with_a_valid_key_is_answered_here(app: FastAPI) -> None:
    assert answer_to(app, wire(RAW | {"x-api-key": "secret"}, IMAGE), keys=["secret"])[0].status == 200
    assert answer_to(app, wire(RAW | {"x-api-key": "another"}, IMAGE), keys=["secret"])[0].status == 299
    assert answer_to(app, wire(RAW, IMAGE), keys=["secret"])[0].status == 299


def test_a_connection_over_the_limit_is_handed_over(app: FastAPI) -> None:
    async def go() -> tuple[Answer, Line]:
        async with Line(app, most=1) as line:
            first = line.writer
            line.reader, line.writer = await asyncio.open_connection(*line.address)
            line.writer.write(wire(RAW, IMAGE))
            found = await line.answer()
            first.close()
            return found, line

    found, line = asyncio.run(go())
    assert (found.status, line.ordinary.body, line.ordinary.scope["state"][TOO_MANY_CONNECTIONS]) == (299, IMAGE, 1)


def test_a_body_without_room_is_refused_here(app: FastAPI) -> None:
    found, line = answer_to(app, wire(RAW, IMAGE), room=10)
    assert (found.status, line.ordinary.body, line.counted) == (429, None, [("classify", 429)])
    assert "at most 10 are allowed" in json.loads(found.body)["detail"]


@pytest.mark.parametrize("pause", [0.01, 0.1], ids=["within a moment", "later"])
def test_a_body_may_come_after_its_head(app: FastAPI, pause: float) -> None:
    whole = wire(RAW, IMAGE)
    at = len(whole) - len(IMAGE)
    found, line = answer_to(app, whole[:9], whole[9:at], whole[at : at + 50], whole[at + 50 :], pause=pause)
    assert (found.status, line.ordinary.body) == ((200, None) if pause < 0.05 else (299, IMAGE))


def test_a_client_that_disconnects_within_a_body_is_handed_over_as_disconnected(app: FastAPI) -> None:
    async def go() -> Line:
        async with Line(app) as line:
            line.writer.write(wire(RAW, IMAGE)[:-5])
            await line.writer.drain()
            await asyncio.sleep(0.01)
        return line

    line = asyncio.run(go())
    assert line.ordinary.left
    assert line.counted == []


def test_answers_keep_the_order_of_requests_on_one_connection(app: FastAPI) -> None:
    other = wire({}, b"", start="GET /elsewhere HTTP/1.1")
    asked_at_once = [wire(RAW, IMAGE), other, wire(*form(IMAGE), "/v1/encode"), wire(RAW, IMAGE), other]

    async def go() -> tuple[list[int], Line]:
        async with Line(app) as line:
            line.writer.write(b"".join(asked_at_once))
            found = [await line.answer() for _ in asked_at_once]
            line.writer.write(wire(RAW, IMAGE))
            return [each.status for each in [*found, await line.answer()]], line

    statuses, line = asyncio.run(go())
    assert statuses == [200, 299, 200, 200, 299, 200]
    assert line.state.total_requests == 6


def test_many_connections_share_a_batch_and_each_gets_its_own_answer(app: FastAPI) -> None:
    async def go() -> list[bytes]:
        async with Line(app) as line:
            found = []
            for image in SMALL:
                line.writer.write(wire(RAW, image, "/v1/encode"))
                found.append((await line.answer()).body)
            pairs = [await asyncio.open_connection(*line.address) for _ in SMALL]
            for (_, writer), image in zip(pairs, SMALL, strict=True):
                writer.write(wire(RAW, image, "/v1/encode"))
            for (reader, writer), alone in zip(pairs, found, strict=True):
                line.reader = reader
                together = json.loads((await line.answer()).body)["results"][0]["embedding"]
                assert together == pytest.approx(json.loads(alone)["results"][0]["embedding"], abs=1e-5)
                writer.close()
            return found

    assert len(set(asyncio.run(go()))) == len(SMALL)


class Gate:
    """Holds a model's batches back."""

    def __init__(self, app: FastAPI) -> None:
        self.open, self.began, self._app = threading.Event(), threading.Event(), app

    def close(self) -> None:
        model = self._app.state.fast_path.predictor.repository.get(None)

        def run(wishes: Sequence[OutputRequest]) -> list[Outputs]:
            self.began.set()
            self.open.wait(20)
            return answer(model.bundle, wishes)

        model.batcher = Batcher(run, 32, ThreadPoolExecutor(1))


@pytest.mark.parametrize(
    ("whole", "kind"),
    [
        (wire(RAW, IMAGE), "application/problem+json"),
        (wire(RAW | {"x-timeout-ms": "30"}, IMAGE), "application/problem+json"),
        (wire(*question(), INFER), "application/json"),
        (wire(*question(parameters={"timeout": 30_000}), INFER), "application/json"),
    ],
)
def test_past_its_deadline_a_request_is_504_and_its_work_is_dropped(models: Path, whole: bytes, kind: str) -> None:
    own = b"timeout" in whole
    app = create_app(Settings(models=models, timeout_ms=60_000 if own else 30))
    gate = Gate(app)

    async def go() -> tuple[Answer, Line]:
        async with Line(app) as line:
            gate.close()
            line.writer.write(whole)
            found = await line.answer()
            gate.open.set()
            return found, line

    found, line = asyncio.run(go())
    assert (found.status, found.headers["content-type"], line.ordinary.body) == (504, kind, None)
    assert b"not answered within 30 ms; the work was dropped" in found.body
    assert [status for _, status in line.counted] == [504]


@pytest.mark.parametrize("abruptly", [True, False])
def test_the_work_of_a_disconnected_client_is_dropped_and_counted(app: FastAPI, abruptly: bool) -> None:
    """While the queue is long, a half-closed connection counts as disconnected too."""
    gate = Gate(app)

    async def go() -> Line:
        async with Line(app) as line:
            gate.close()
            line.writer.write(wire(RAW, IMAGE))
            await asyncio.to_thread(gate.began.wait, 20)
            if abruptly:
                linger = struct.pack("ii", 1, 0)  # resets the connection
                line.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                line.writer.transport.abort()
            else:
                line.fast_path.predictor.repository.get(None).seconds = 2.0
                line.writer.close()
            while line.fast_path.room.held:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert line.fast_path.predictor.admission.images == 0  # while the model is still at it
            gate.open.set()
        return line

    line = asyncio.run(go())
    assert (line.counted, line.ordinary.body) == ([("classify", CLIENT_DISCONNECTED)], None)


def test_a_half_closed_connection_is_answered_however_long_it_takes(app: FastAPI) -> None:
    gate = Gate(app)

    async def go() -> tuple[Answer, bytes]:
        async with Line(app) as line:
            gate.close()
            line.writer.write(wire(RAW, IMAGE))
            line.writer.write_eof()
            await asyncio.to_thread(gate.began.wait, 20)
            await asyncio.sleep(0.1)  # the end is read
            gate.open.set()
            return await line.answer(), await line.reader.read()

    found, rest = asyncio.run(go())
    assert (found.status, found.headers["connection"], rest) == (200, "close", b"")


def test_shutdown_closes_a_connection_after_its_answer(app: FastAPI) -> None:
    gate = Gate(app)

    async def go() -> tuple[Answer, bytes]:
        async with Line(app) as line:
            gate.close()
            line.writer.write(wire(RAW, IMAGE))
            await asyncio.to_thread(gate.began.wait, 20)
            [connection] = line.state.connections
            assert connection.busy
            connection.shutdown()
            gate.open.set()
            return await line.answer(), await line.reader.read()

    found, rest = asyncio.run(go())
    assert (found.status, found.headers["connection"], rest) == (200, "close", b"")


def test_shutdown_within_a_body_closes_the_connection_after_its_answer(app: FastAPI) -> None:
    async def go() -> tuple[Answer, bytes]:
        async with Line(app) as line:
            whole = wire(RAW, IMAGE)
            line.writer.write(whole[:-5])
            await asyncio.sleep(0.01)
            [connection] = line.state.connections
            assert connection.busy
            connection.shutdown()
            line.writer.write(whole[-5:])
            return await line.answer(), await line.reader.read()

    found, rest = asyncio.run(go())
    assert (found.status, found.headers["connection"], rest) == (200, "close", b"")


def test_a_draining_server_answers_pipelined_requests_and_says_close_once(app: FastAPI) -> None:
    gate = Gate(app)

    async def go() -> tuple[Answer, Answer, bytes]:
        async with Line(app) as line:
            gate.close()
            line.writer.write(wire(RAW, IMAGE) + wire({}, b"", start="GET /elsewhere HTTP/1.1"))
            await asyncio.to_thread(gate.began.wait, 20)
            line.state.default_headers = [*line.state.default_headers, (b"connection", b"close")]
            [connection] = line.state.connections
            connection.shutdown()
            gate.open.set()
            return await line.answer(), await line.answer(), await line.reader.read()

    first, second, rest = asyncio.run(go())
    assert (first.status, second.status, second.headers["connection"], rest) == (200, 299, "close", b"")


def test_a_request_to_a_draining_server_gets_one_connection_close(app: FastAPI) -> None:
    async def go() -> bytes:
        async with Line(app) as line:
            line.state.default_headers = [*line.state.default_headers, (b"connection", b"close")]
            line.writer.write(wire(RAW, IMAGE))
            return await line.reader.read()

    assert asyncio.run(go()).count(b"connection: close") == 1


def handed_over(app: FastAPI) -> dict[str, float]:
    """Handovers by reason."""
    found = re.findall(r'graft_fast_path_handovers_total{reason="(.*)"} (.*)', app.state.metrics.exposition().decode())
    return {reason: float(count) for reason, count in found}


@pytest.mark.parametrize(
    ("reason", "path", "headers", "body"),
    [
        ("not-plain", "/v1/classify", RAW | {"content-encoding": "gzip"}, IMAGE),
        (
            "not-plain",
            INFER,
            *question(image={"name": "embedding", "shape": [1, 5], "datatype": "FP32", "data": [0] * 5}),
        ),
        ("large-body", "/v1/classify", RAW, IMAGE + bytes(70_000)),
        ("refused", "/v1/classify", {"content-type": "text/plain"}, IMAGE),
        ("refused", "/v1/classify", RAW | {"x-timeout-ms": "soon"}, IMAGE),
        ("refused", "/v1/classify?top_k=0", RAW, IMAGE),
        ("refused", INFER, {}, b"no JSON"),
        ("refused", "/v1/classify", RAW | {"accept": "text/html"}, IMAGE),
        ("refused", "/v2/models/none/infer", *question()),
    ],
)
def test_handovers_are_counted_by_reason(
    app: FastAPI, reason: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    found, line = answer_to(app, wire(headers, body, path))
    assert (found.status, line.ordinary.body, handed_over(app)) == (299, body, {reason: 1})


def test_answered_and_unrecognised_requests_are_not_handovers(app: FastAPI) -> None:
    answer_to(app, wire(RAW, IMAGE))
    answer_to(app, wire(RAW, IMAGE, "/v1/classify?top_k=1"))
    assert handed_over(app) == {}


@pytest.mark.parametrize("missing", [5, len(IMAGE)])
def test_a_slow_body_is_a_handover(app: FastAPI, missing: int) -> None:
    whole = wire(RAW, IMAGE)
    answer_to(app, whole[:-missing], whole[-missing:], pause=0.2)
    assert handed_over(app) == {"slow-body": 1}


def fault(*_: Any) -> Any:
    raise ZeroDivisionError("of nobody's making")


def shapes_nothing(call: Any, images: list[bytes]) -> Plan:
    return operations.classify(call, images)._replace(shape=lambda _: None)


def shapes_badly(call: Any, images: list[bytes]) -> Plan:
    return operations.classify(call, images)._replace(shape=fault)


class Faulty(FastPath):
    def recognise(self, url: bytes, headers: Headers) -> PlainRequest | None:
        return fault()


FAULTS: dict[str, tuple[type[FastPath], Callable[..., Any]]] = {
    "recognising": (Faulty, operations.classify),
    "planning": (FastPath, fault),
    "shaping": (FastPath, shapes_badly),
    "answering": (FastPath, shapes_nothing),
}


@pytest.mark.parametrize(("kind", "operation"), FAULTS.values(), ids=FAULTS)
def test_the_ordinary_path_answers_when_the_fast_path_fails(
    models: Path, caplog: pytest.LogCaptureFixture, kind: type[FastPath], operation: Callable[..., Any]
) -> None:
    settings = Settings(models=models)
    app = create_app(settings)
    whole = app.state.fast_path
    of_all = {"/v1/classify": operation}
    app.state.fast_path = kind(app, of_all, fault, whole.room, whole.deadlines, access.Keys([]), whole.request_log)
    with serving(settings, app) as client:
        for _ in range(3):
            answer = client.post("/v1/classify", content=IMAGE, headers=RAW)
            assert (answer.status_code, len(answer.json()["results"])) == (200, 1)
        assert 'graft_fast_path_handovers_total{reason="error"} 3.0' in client.get("/metrics").text
    [line] = [record for record in caplog.records if "the fast path failed" in record.getMessage()]
    assert line.levelname == "ERROR"
    assert line.exc_info is not None
    assert line.exc_info[2] is not None, "the traceback"


def test_the_ordinary_path_answers_when_the_protocols_fast_path_fails(models: Path) -> None:
    settings = Settings(models=models)
    app = create_app(settings)
    whole = app.state.fast_path
    app.state.fast_path = FastPath(app, {}, fault, whole.room, whole.deadlines, access.Keys([]), whole.request_log)
    with serving(settings, app) as client:
        headers, body = question()
        assert client.post(INFER, content=body, headers=headers).status_code == 200
        assert 'graft_fast_path_handovers_total{reason="error"} 1.0' in client.get("/metrics").text


# --- a full queue ---------------------------------------------------------------------------------------------


REFUSED = [("/v1/classify", *form(IMAGE)), ("/v1/encode", RAW, IMAGE), (INFER, *question())]


@pytest.mark.parametrize("log_requests", ["errors", "none"])
@pytest.mark.parametrize(("path", "headers", "body"), REFUSED)
def test_a_full_queue_is_refused_as_on_the_ordinary_path(
    models: Path,
    caplog: pytest.LogCaptureFixture,
    path: str,
    headers: dict[str, str],
    body: bytes,
    log_requests: LogRequests,
) -> None:
    settings = Settings(models=models, log_requests=log_requests, cors_origins="https://shop.example")
    app = create_app(settings)
    admission = app.state.predictor.admission
    headers = headers | {"x-request-id": "mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}

    def counted(client: httpx.Client) -> Counter[str]:
        lines = client.get("/metrics").text.splitlines()
        named = [line.rpartition(" ") for line in lines if re.match("graft_(requests|request_seconds_count)", line)]
        return Counter({name: int(float(count)) for name, _, count in named})

    with caplog.at_level("INFO", "graft"), serving(settings, app) as client:
        release = admission.hold(admission.most)
        app.state.predictor.repository.get(None).seconds = 0.0025  # which tells when to try again
        output = []
        for extra in ({}, {"x-timeout-ms": "9999"}):  # which asks for the ordinary path
            before = counted(client)
            caplog.clear()
            answer = client.post(path, content=body, headers=headers | extra)
            after = counted(client)
            after.subtract(before)
            lines = [{name: vars(record).get(name) for name in SHOWN} for record in caplog.records]
            kept = {name: value for name, value in answer.headers.items() if name != "server-timing"}
            output.append(
                (answer.status_code, kept, answer.content, +after, lines, answer.headers["server-timing"][:10])
            )
        release()
        assert client.post(path, content=body, headers=headers).status_code == 200
    assert output[0] == output[1]
    status, kept, content, after, lines, _ = output[0]
    assert (status, kept["retry-after"], kept["x-request-id"]) == (429, "3", "mine")
    assert b"1,024 images are in flight" in content
    assert after['graft_requests_refused_total{type="queue-full"}'] == 1
    assert sum(after.values()) >= 3
    assert len(lines) == (log_requests == "errors")


SHOWN = ("msg", "levelname", "model", "version", "operation", "problem", "path", "status", "method")


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classify?top_k=1", "/v1/decode", INFER, INFER + "?a=b"])
def test_a_full_queue_is_refused_before_the_body_is_parsed(models: Path, path: str) -> None:
    """The body is not an image, a form or JSON, which would be the error if it were parsed."""
    settings = Settings(models=models)
    app = create_app(settings)
    admission = app.state.predictor.admission
    with serving(settings, app) as client:
        release = admission.hold(admission.most)
        for headers in ({"content-type": "multipart/form-data; boundary=b"}, {"content-type": "application/json"}):
            answer = client.post(path, content=b"neither", headers=headers)
            assert answer.status_code == 429, answer.text
        release()
        assert client.post(path, content=b"neither", headers=headers).status_code == 400


def test_too_many_images_for_the_queue_are_refused_before_they_are_decoded(models: Path) -> None:
    settings = Settings(models=models)
    app = create_app(settings)
    admission = app.state.predictor.admission
    headers, body = form(IMAGE, IMAGE[:-9])  # the second is broken
    with serving(settings, app) as client:
        release = admission.hold(admission.most - 1)
        assert client.post("/v1/classify", content=body, headers=headers).status_code == 429
        release()
        assert client.post("/v1/classify", content=body, headers=headers).status_code == 422


def test_a_body_in_two_segments_is_answered_once(app: FastAPI) -> None:
    """The time for its rest is over when it has come."""
    gate = Gate(app)

    async def go() -> tuple[Answer, Line]:
        async with Line(app) as line:
            gate.close()
            whole = wire(RAW, IMAGE)
            line.writer.write(whole[:-5])
            await asyncio.sleep(0.01)
            line.writer.write(whole[-5:])
            await asyncio.sleep(0.2)
            gate.open.set()
            return await line.answer(), line

    found, line = asyncio.run(go())
    assert (found.status, line.ordinary.body) == (200, None)


def test_a_failed_batch_is_handed_over(app: FastAPI) -> None:
    def failing(_: Sequence[OutputRequest]) -> list[Outputs]:
        raise ValueError("of nobody's making")

    async def go() -> tuple[Answer, Line]:
        async with Line(app) as line:
            line.fast_path.predictor.repository.get(None).batcher = Batcher(failing, 32, ThreadPoolExecutor(1))
            line.writer.write(wire(RAW, IMAGE))
            return await line.answer(), line

    found, line = asyncio.run(go())
    assert (found.status, line.ordinary.body, line.counted) == (299, IMAGE, [])


@pytest.mark.parametrize("whole", [wire(RAW, IMAGE), wire(*with_bytes(), INFER)], ids=["v1", "v2"])
def test_no_request_is_left_to_the_garbage_collector(app: FastAPI, whole: bytes) -> None:
    def there() -> list[int]:
        counted = Counter(type(each) for each in gc.get_objects())
        return [counted[kind] for kind in (PendingRequest, Connection, FastExchange)]

    async def go() -> tuple[list[int], list[int]]:
        async with Line(app) as line:
            line.writer.write(whole)
            await line.answer()
            gc.collect()
            before = there()
            gc.disable()
            try:
                for _ in range(20):
                    line.writer.write(whole)
                    await line.answer()
                for _ in range(9):
                    line.reader, writer = await asyncio.open_connection(*line.address)
                    writer.write(whole)
                    await line.answer()
                    writer.close()
                    while len(line.state.connections) > 1:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                for _ in range(100):  # the loop may still hold the last one that has gone
                    if there() == before:
                        break
                    await asyncio.sleep(0.01)
                return before, there()
            finally:
                gc.enable()

    before, after = asyncio.run(go())
    assert before == after
    assert before[1] >= 1


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v2/models/a/infer", "a"),
        ("/v2/models/a/versions/1/infer", "a@1"),
        ("/v2/models/a/versions//infer", None),
        ("/v2/models//infer", None),
        ("/v2/models/infer", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/a/versions/1/2/infer", None),
        ("/v2/models/a/ready", None),
    ],
)
def test_the_path_of_an_infer_request_names_its_model(path: str, model: str | None) -> None:
    assert infer_model(path) == model
