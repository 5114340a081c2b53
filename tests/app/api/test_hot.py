"""Which requests the hottest path answers itself, and that it hands on all others as if it had not seen them."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from app.api import access, operations
from app.api.bodies import CROWDED, Arrivals
from app.api.hot import Hot
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.errors import BodyTooSlow, DeadlinePassed, GraftError, QueueFull
from app.inference.admission import Bytes
from app.main import create_app
from app.settings import Settings

IMAGE = png(garment("bag"))
RAW = {"content-type": "image/png"}


def form(*files: bytes) -> tuple[dict[str, str], bytes]:
    head = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i.png"\r\n\r\n'
    return {"content-type": "multipart/form-data; boundary=b"}, b"".join(head + f + b"\r\n" for f in files) + b"--b--"


class Others:
    """What is handed on, and what they would have read of it."""

    def __init__(self) -> None:
        self.read: list[Message | GraftError] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.read.append(await receive())
            while self.read[-1].get("more_body"):  # type: ignore[union-attr]
                self.read.append(await receive())
        except GraftError as error:
            self.read.append(error)
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body"})

    @property
    def body(self) -> bytes:
        return b"".join(each["body"] for each in self.read)  # type: ignore[index]


class Answer:
    def __init__(self, sent: list[Message], others: Others, counted: list[tuple[str | None, int]]) -> None:
        start, end = sent
        self.status, self.headers = start["status"], dict(start["headers"])
        self.body, self.others, self.counted = end.get("body", b""), others, counted


def asked(
    app: FastAPI,
    headers: dict[str, str],
    *pieces: bytes,
    path: str = "/v1/classify",
    method: str = "POST",
    query: bytes = b"",
    keys: Sequence[str] = (),
    room: int = 10**9,
    seconds: float = 5,
    state: dict[str, Any] | None = None,
    pause: float = 0,
) -> Answer:
    others, counted, sent = Others(), [], []
    body = b"".join(pieces)
    headers = {"host": "x", "content-length": str(len(body))} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "state": state or {},
    }
    coming = [
        {"type": "http.request", "body": piece, "more_body": more}
        for more, piece in zip([*[True] * (len(pieces) - 1), False], pieces, strict=True)
    ]

    async def receive() -> Message:
        await asyncio.sleep(pause)
        if not coming:
            await asyncio.sleep(60)
        return coming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def go() -> None:
        arrivals = Arrivals(Bytes(room), seconds, app.state.alarms)  # type: ignore[arg-type]
        hot = Hot(
            app,
            others,
            operations.BY_PATH,
            arrivals,
            access.Keys(keys),
            lambda _, record, status, __: counted.append((record.operation, status)),
        )
        async with app.router.lifespan_context(app):
            await hot(scope, receive, send)
        assert arrivals.room.held == 0
        assert app.state.predictor.admission.images == 0

    asyncio.run(go())
    return Answer(sent, others, counted)


@pytest.fixture
def app(models: Path) -> FastAPI:
    return create_app(Settings(models=models))


@pytest.mark.parametrize("operation", ["classify", "encode", "reconstruct", "anomaly", "predict"])
@pytest.mark.parametrize(
    ("headers", "body"), [(RAW, IMAGE), form(IMAGE), form(*[png(garment(kind).resize((4, 6))) for kind in GARMENTS])]
)
def test_plain_requests_are_answered_here(app: FastAPI, operation: str, headers: dict[str, str], body: bytes) -> None:
    answer = asked(app, headers | {"x-request-id": "mine"}, body, path=f"/v1/{operation}")
    assert (answer.status, answer.others.read) == (200, [])
    assert answer.counted == [(operation, 200)]
    assert answer.headers[b"x-request-id"] == b"mine"
    assert {part.partition(b";")[0].strip() for part in answer.headers[b"server-timing"].split(b",")} == {
        b"queue", b"decode", b"run", b"total",
    }  # fmt: skip
    assert len(json.loads(answer.body)["results"]) == (len(GARMENTS) if body.count(b"PNG") > 1 else 1)


@pytest.mark.parametrize(
    ("headers", "body", "more"),
    [
        (RAW, IMAGE, {"method": "PUT"}),
        (RAW, IMAGE, {"query": b"top_k=1"}),
        (RAW, IMAGE, {"path": "/v1/decode"}),
        (RAW, IMAGE, {"state": {CROWDED: 3}}),
        (RAW, IMAGE, {"keys": ["secret"]}),
        (RAW | {"x-timeout-ms": "50"}, IMAGE, {}),
        (RAW | {"content-encoding": "gzip"}, IMAGE, {}),
        (RAW | {"origin": "http://elsewhere"}, IMAGE, {}),
        (RAW | {"accept": "text/html"}, IMAGE, {}),
        (RAW | {"content-length": "x"}, IMAGE, {}),
        (RAW, IMAGE[:-9], {}),
        (RAW, b"", {}),
        (RAW, b"GIF89a", {}),
        (RAW, png(garment("bag").resize((300, 300))), {}),
        ({"content-type": "text/plain"}, IMAGE, {}),
        ({"content-type": "application/json"}, b'{"images": []}', {}),
        ({"content-type": "multipart/form-data"}, IMAGE, {}),
        ({"content-type": "multipart/form-data; boundary=c"}, form(IMAGE)[1], {}),
        (*form(IMAGE, IMAGE[:-9]), {}),
        (*form(IMAGE, b""), {}),
        (*form(*[IMAGE] * 200), {}),
    ],
)  # fmt: skip
def test_all_else_is_handed_on_unread(app: FastAPI, headers: dict[str, str], body: bytes, more: dict[str, Any]) -> None:
    answer = asked(app, headers, body, **more)
    assert (answer.status, answer.others.body, answer.counted) == (299, body, [])


def test_a_key_that_fits_is_let_in_here(app: FastAPI) -> None:
    assert asked(app, RAW | {"x-api-key": "secret"}, IMAGE, keys=["secret"]).status == 200
    assert asked(app, RAW | {"x-api-key": "another"}, IMAGE, keys=["secret"]).status == 299


def test_a_body_in_pieces_is_handed_on_whole(app: FastAPI) -> None:
    answer = asked(app, RAW, IMAGE[:50], IMAGE[50:])
    assert (answer.status, answer.others.body) == (299, IMAGE)


@pytest.mark.parametrize(("more", "error"), [({"room": 10}, QueueFull), ({"pause": 5, "seconds": 0.05}, BodyTooSlow)])
def test_what_is_wrong_with_a_body_is_told_by_the_others_at_once(
    app: FastAPI, more: dict[str, Any], error: type[GraftError]
) -> None:
    [read] = asked(app, RAW, IMAGE, **more).others.read
    assert isinstance(read, error)


def test_a_deadline_that_has_passed_is_not_waited_for_twice(models: Path) -> None:
    app = create_app(Settings(models=models, timeout_ms=30))

    class Slow:
        def __init__(self, predictor: Any) -> None:
            self._predictor = predictor

        def __getattr__(self, name: str) -> Any:
            return getattr(self._predictor, name)

        async def predict(self, *_: object) -> None:
            await asyncio.sleep(20)

    app.state.predictor = Slow(app.state.predictor)
    [read] = asked(app, RAW, IMAGE).others.read
    assert isinstance(read, DeadlinePassed)


def test_what_nobody_foresaw_is_for_the_others_to_tell_of(models: Path) -> None:
    app = create_app(Settings(models=models))
    app.state.predictor.decoded_if_quick = None
    answer = asked(app, RAW, IMAGE)
    assert (answer.status, answer.others.body) == (299, IMAGE)
