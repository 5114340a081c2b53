"""The hottest path: a plain request with small images in it, answered in front of everything else.

FastAPI, its middlewares and ours are a coroutine each, and a request that a model answers in 30 µs spends several times
as long in them. Here it is one function from the body to the answer:

    recognise ─▶ body ─▶ files ─▶ pixels ─▶ batch ─▶ answer ─▶ count
        └────────┴────────┴────────┴────────┴─▶ whatever is not plainly good goes on to the others, as if never seen

so that nothing is refused here, and no refusal has a second shape: what this path does not answer with 200 is read anew
by those that know all of it. What bounds others bounds this one: keys, bodies' bytes and time, the queue, the deadline,
and that the caller may leave.
"""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import access
from app.api.bodies import CROWDED, Arrivals
from app.api.call import Call, Operation
from app.api.form import boundary_of, plain_files
from app.errors import DeadlinePassed, GraftError
from app.observability import HEADER, TIMING, Facts, begin

_MOST_BYTES = 64 << 10  # of a body; larger ones are parsed and decoded off the event loop
_ELSEWHERE = frozenset(  # headers that ask for what is done there
    {b"x-timeout-ms", b"content-encoding", b"transfer-encoding", b"expect", b"origin"}
)


class _Asked(NamedTuple):
    operation: Operation
    content_type: str
    accept: str | None


class Hot:
    def __init__(
        self,
        app: FastAPI,
        others: ASGIApp,
        operations: Mapping[str, Operation],
        arrivals: Arrivals,
        keys: access.Keys,
        tell: Callable[[Scope, Facts, int, float], None],
    ) -> None:
        """`operations` by path; `tell` is called for each request that was answered here."""
        self._app, self._others = app, others
        self._arrivals, self._keys, self._tell = arrivals, keys, tell
        settings = app.state.settings
        prefix = settings.root_path.strip("/")
        self._operations = {**operations, **{f"/{prefix}{path}": each for path, each in operations.items() if prefix}}
        self._most_images, self._most_bytes = settings.max_images, min(_MOST_BYTES, settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = self._recognised(scope) if scope["type"] == "http" else None
        if asked is None:
            await self._others(scope, receive, send)
            return
        start = perf_counter()
        own, record = begin(scope["headers"])
        seen: Message | GraftError | None = None
        answer = None
        arriving = self._arrivals.of(receive)
        try:
            seen = await arriving.receive()
            answer = await self._answered(asked, Request(scope, receive), seen, record)
        except GraftError as error:
            if seen is None or isinstance(error, DeadlinePassed):  # nobody is to wait for it once more
                seen = error
        except ClientDisconnect:
            seen = {"type": "http.disconnect"}
        except Exception:  # noqa: S110  # who takes it from here meets it too, and tells of it
            pass
        finally:
            arriving.over()
        if answer is None:
            await self._others(scope, receive if seen is None else _again(seen, receive), send)
            return
        timing = record.timing(perf_counter() - start)
        headers = [*answer.raw_headers, (HEADER, own), (TIMING, timing)]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        self._tell(scope, record, answer.status_code, perf_counter() - start)

    def _recognised(self, scope: Scope) -> _Asked | None:
        operation = self._operations.get(scope["path"])
        if operation is None or scope["method"] != "POST" or scope["query_string"]:
            return None
        content_type = accept = length = None
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value if content_type is None else b""  # twice: neither
            elif name == b"content-length":
                length = value
            elif name == b"accept":
                if accept is not None:
                    return None
                accept = value.decode("latin-1")
            elif name in _ELSEWHERE:
                return None
        if not content_type or length is None or not length.isdigit() or int(length[:9]) > self._most_bytes:
            return None
        if CROWDED in scope.get("state", ()) or (self._keys and not access.holds(self._keys, scope)):
            return None
        return _Asked(operation, content_type.decode("latin-1"), accept)

    async def _answered(self, asked: _Asked, request: Request, seen: Message, record: Facts) -> Response | None:
        body: bytes = seen.get("body", b"")
        if seen.get("more_body", False) or len(body) > self._most_bytes:
            return None
        record.body_read = perf_counter()
        files = self._files(asked.content_type, body)
        if not files:
            return None
        request.scope["app"] = self._app
        record.operation = asked.operation.__name__
        call = Call(request, accept=asked.accept)
        plan = asked.operation(call, files)
        model = call.able(*plan.needs)
        images = call.predictor.decoded_if_quick(model.bundle, files)
        if images is None:
            return None
        decode_s = perf_counter() - record.body_read
        answer = await call.answered_by(model, images, plan.outputs, plan.shape)
        record.decode_s = decode_s
        return answer

    def _files(self, content_type: str, body: bytes) -> list[bytes] | None:
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            boundary = boundary_of(content_type)
            return None if boundary is None else plain_files(body, boundary, self._most_images)
        return [body] if kind.startswith("image/") else None


def _again(seen: Message | GraftError, receive: Receive) -> Receive:
    """As if it had not been received yet."""
    first = True

    async def received() -> Message:
        nonlocal first
        if not first:
            return await receive()
        first = False
        if isinstance(seen, GraftError):
            raise seen
        return seen

    return received
