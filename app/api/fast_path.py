"""The fast path: answers good requests of small bodies right where their bytes arrive, in front of the ASGI app.

An ASGI application costs several times what a small model takes: FastAPI, the middleware, a task and its messages.
Here a request is two function calls, one when its body is complete and one when its batch has run:

    recognise ─▶ body ─▶ room? ─▶ files ─▶ Predictor.begin ···▶ response ─▶ answer ─▶ count
        │         │       └─ 429   │             │                 │  └─ 504
        └─────────┴────────────────┴─────────────┴─────────────────┴─▶ any other error: the ordinary path

Errors have one home: what this path does not answer is handed over, and the ordinary path reads it from the start. Each
handover is counted by its reason. Two refusals are sent from here: that of a full queue, before anything is parsed,
because under overload a refusal has to be cheap; and that of a passed deadline, when its work has been dropped. All
limits of the ordinary path hold here too: API keys, the bytes of bodies, the queue, the deadline, and a client that
disconnects. The limits on slow bodies and on the number of connections belong to the connection (app/serving).
"""

import asyncio
import inspect
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import numpy as np
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.call import SHAPED_ON_LOOP, Call, OperationFunction, Plan, late, value_count
from app.api.deadlines import Deadlines
from app.api.middleware import access
from app.api.middleware.root_path import PROTOCOL
from app.api.problems import answer_to
from app.api.request_body import images_of
from app.errors import GraftError, MalformedRequest, QueueFull
from app.inference.admission import Bytes
from app.inference.feedback import Feedback
from app.inference.model import Model
from app.inference.predictor import Prediction, PredictionTask, Predictor
from app.telemetry.logs import ErrorThrottle, RequestLog
from app.telemetry.metrics import Metrics
from app.telemetry.requests import CLIENT_DISCONNECTED, HEADER, TIMING, RequestRecord, identify, in_context

Headers = list[tuple[bytes, bytes]]
INFER = "infer"  # its name in metrics and logs
_MODELS, _INFER = f"{PROTOCOL}/models/", "/infer"
_MAX_BYTES = 64 << 10  # of a body; larger ones are read and parsed piece by piece
_MAX_LENGTH_DIGITS = 9
_MAX_PLANS = _MAX_TARGETS = _MAX_ORIGINS = 64
_ORDINARY_PATH_HEADERS = frozenset({b"content-encoding", b"transfer-encoding", b"expect"})
_JSON_LENGTH = b"inference-header-content-length"
_READ = frozenset({b"content-type", b"content-length", b"accept", b"x-timeout-ms", b"origin", _JSON_LENGTH})
_NOT_PLAIN_PATH = re.compile(r"[^\w./-]", re.ASCII)  # such as an escaped character
_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_BETWEEN_TRACEBACKS_S = 60

# Why a request of an operation is answered by the ordinary path.
NOT_PLAIN, REFUSED, LARGE, SLOW_BODY, LEFT, FAILED = "not-plain", "refused", "large-body", "slow-body", "left", "error"


class Client(Protocol):
    """The connection a request came by. One of the two methods is called, once, unless the client disconnects first."""

    def answer(self, status: int, headers: Headers, body: bytes) -> None: ...

    def hand_over(self) -> None:
        """Give the untouched request to the ordinary path."""


class Target(NamedTuple):
    """What a request's target says."""

    path: str
    operation: str
    model: str | None  # name or name@version
    parameters: Mapping[str, Any]


class PlainRequest(NamedTuple):
    """What the head of a request says, as far as the fast path needs it."""

    raw_target: bytes
    target: Target
    content_type: str
    accept: str | None
    timeout_ms: int
    json_length: str | None  # set under /v2 only
    extra_headers: Headers  # of the answer


Files = Sequence[bytes] | np.ndarray
# (body, JSON length, model) → (images, plan, timeout in ms) of a small /v2 request. Returns None, or raises GraftError,
# where the ordinary path has to answer.
InferParser = Callable[[bytes, str | None, Model], tuple[Files, Plan, int | None] | None]


class FastPath:
    def __init__(
        self,
        app: FastAPI,
        operations: Mapping[str, OperationFunction],
        parse_infer: InferParser,
        room: Bytes,
        deadlines: Deadlines,
        keys: access.Keys,
        request_log: RequestLog,
        cors: Callable[[ASGIApp], ASGIApp] | None = None,
        is_traced: bool = False,
    ) -> None:
        """`operations` by path; `room` is shared with the bodies on the ordinary path; `cors` is the middleware.

        Requests that are traced are left to the ordinary path.
        """
        settings = app.state.settings
        root = "/" + settings.root_path.strip("/") if settings.root_path.strip("/") else ""
        self._root_path, self._operations = root, operations
        self._adapters = {path: _adapters(operation) for path, operation in operations.items()}
        self._app, self._parse_infer, self._is_traced = app, parse_infer, is_traced
        self.room, self.deadlines, self.request_log, self._keys = room, deadlines, request_log, keys
        self.predictor: Predictor = app.state.predictor
        self.feedback: Feedback | None = app.state.feedback
        self._cors_headers = None if cors is None else lru_cache(_MAX_ORIGINS)(lambda origin: _added_by(cors, origin))
        self._timeout_ms: int = settings.timeout_ms
        self._max_images, self._max_bytes = settings.max_images, min(_MAX_BYTES, settings.max_body_bytes)
        self._metrics: Metrics = app.state.metrics
        self._errors = ErrorThrottle(_BETWEEN_TRACEBACKS_S)
        self._targets: dict[bytes, Target] = {}
        self._plans: dict[tuple[bytes, str | None, bool], tuple[weakref.ref[Model], Plan]] = {}

    def recognise(self, url: bytes, headers: Headers) -> PlainRequest | None:
        """The head of a POST → the request, or None if the ordinary path has to answer it."""
        target = self._targets.get(url) or self._parse_target(url)
        if target is None:
            return None
        by_name = dict(headers)
        is_repeated = len(by_name) < len(headers) and not _READ.isdisjoint(_repeated(headers))
        if is_repeated or not _ORDINARY_PATH_HEADERS.isdisjoint(by_name):
            self.count_handover(NOT_PLAIN)
            return None
        if self._keys and not access.has_key(self._keys, {"headers": headers}):
            self.count_handover(REFUSED)
            return None
        length, content_type = by_name.get(b"content-length", b"0"), by_name.get(b"content-type", b"")
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > self._max_bytes:
            self.count_handover(LARGE)
            return None
        accept, milliseconds, json_length = by_name.get(b"accept"), by_name.get(b"x-timeout-ms"), None
        timeout_ms = self._timeout_ms
        if milliseconds is not None:
            if not _MILLISECONDS.fullmatch(milliseconds):
                self.count_handover(REFUSED)
                return None
            timeout_ms = min(timeout_ms, int(milliseconds))
        if target.operation == INFER:
            json_length = by_name.get(_JSON_LENGTH)
        return PlainRequest(
            raw_target=url,
            target=target,
            content_type=content_type.decode("latin-1"),
            accept=None if accept is None else accept.decode("latin-1"),
            timeout_ms=timeout_ms,
            json_length=None if json_length is None else json_length.decode("latin-1"),
            extra_headers=[] if self._cors_headers is None else self._cors_headers(by_name.get(b"origin")),
        )

    def _parse_target(self, url: bytes) -> Target | None:
        """Cached: parameters are parsed as FastAPI does, which takes its time."""
        path, _, query = url.decode("latin-1").partition("?")
        if self._is_traced or _NOT_PLAIN_PATH.search(path) or "#" in query:
            return None
        route = path.removeprefix(self._root_path)
        operation = self._operations.get(route)
        if operation is None:
            model = infer_model(route)
            return None if model is None else Target(path, INFER, model, {})
        sent = dict(parse_qsl(query, keep_blank_values=True))
        try:
            parameters = {
                name: adapter.validate_python(sent[name])
                for name, adapter in self._adapters[route].items()
                if name in sent
            }
        except ValidationError as error:
            raise MalformedRequest(str(error)) from None  # which the ordinary path tells the client
        if len(self._targets) >= _MAX_TARGETS:
            self._targets.clear()
        target = self._targets[url] = Target(path, operation.__name__, sent.get("model"), parameters)
        return target

    @property
    def wait_s(self) -> float:
        """Estimate of how long an image that arrived now would wait in the queue."""
        each = max((model.seconds for model in self.predictor.repository.all()), default=0.0)
        return self.predictor.admission.images * each

    def start(
        self, request: PlainRequest, headers: Headers, body: bytes, client: Client, since: float
    ) -> "PendingRequest | None":
        """Put the request's images into the queue; None if the ordinary path has to answer it.

        Raises QueueFull, which the caller passes to `refuse`. `since` is when the head was complete.
        """
        start = perf_counter()
        target = request.target
        model = self.predictor.repository.get(target.model)
        admission = self.predictor.admission
        if admission.images >= admission.most or self.room.held + len(body) > self.room.most:
            admission.require(1, model.seconds)
            self.room.require(len(body))
        if target.operation == INFER:
            parsed = self._parse_infer(body, request.json_length, model)
        else:
            parsed = self._parse_operation(request, body, model)
        if parsed is None:
            return None
        files, plan, timeout_ms = parsed
        own_id, trace_id = identify(headers)
        record = RequestRecord(
            operation=target.operation,
            model=model.bundle.name,
            version=model.bundle.version,
            images=len(files),
            body_read=start,
            trace_id=trace_id,
        )
        pending = PendingRequest(
            self,
            request=request,
            own_id=own_id,
            record=record,
            start=since,
            plan=plan,
            body_size=len(body),
            client=client,
        )
        pending.begin(files, model, min(request.timeout_ms, timeout_ms or request.timeout_ms))
        return pending

    def refuse(self, request: PlainRequest, headers: Headers, error: QueueFull, client: Client, since: float) -> None:
        """Send the same refusal as the ordinary path would."""
        bundle = self.predictor.repository.get(request.target.model).bundle
        own_id, trace_id = identify(headers)
        record = RequestRecord(request.target.operation, bundle.name, bundle.version, trace_id=trace_id)
        response = refusal(request, error, own_id, record)
        self.send(request, response, own_id, record, client=client, since=since)

    def send(
        self,
        request: PlainRequest,
        response: Response,
        own_id: bytes,
        record: RequestRecord,
        client: Client,
        since: float,
    ) -> None:
        """Send the response, then count and log the request."""
        timing = record.timing(perf_counter() - since)
        headers = [*response.raw_headers, *request.extra_headers, (HEADER, own_id), (TIMING, timing)]
        client.answer(response.status_code, headers, bytes(response.body))
        self.count(request, own_id, record, response.status_code, since=since)

    def count(self, request: PlainRequest, own_id: bytes, record: RequestRecord, status: int, since: float) -> None:
        scope = {"method": "POST", "path": request.target.path}
        self.request_log.finished_without_context(
            scope, own_id=own_id, record=record, status=status, seconds=perf_counter() - since
        )

    def count_handover(self, reason: str | Exception) -> None:
        """Count a request that goes to the ordinary path; an unexpected exception is logged as well."""
        if isinstance(reason, str):
            self._metrics.handed_over(reason)
        elif isinstance(reason, GraftError):
            self._metrics.handed_over(REFUSED)
        else:
            self._metrics.handed_over(FAILED)
            self._errors.error("the fast path failed; the ordinary path answers", reason)

    def _parse_operation(self, request: PlainRequest, body: bytes, model: Model) -> tuple[Files, Plan, None] | None:
        media_type = request.content_type.partition(";")[0].strip().lower()
        files = images_of(media_type, request.content_type, body, self._max_images)
        return files, self._plan(request, model, len(files) == 1), None

    def _plan(self, request: PlainRequest, model: Model, is_single: bool) -> Plan:
        """Cached: a plan depends on nothing but the key below and the model."""
        key = request.raw_target, request.accept, is_single
        cached = self._plans.get(key)
        if cached is not None and cached[0]() is model:
            return cached[1]
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        target = request.target
        call = Call(Request({"type": "http", "app": self._app}), target.model, accept=request.accept)
        operation = self._operations[target.path.removeprefix(self._root_path)]
        plan = operation(call, [b""] if is_single else [b"", b""], **target.parameters)
        for needed in plan.needs:
            model.bundle.require(needed)
        self._plans[key] = weakref.ref(model), plan
        return plan


def infer_model(path: str) -> str | None:
    """/v2/models/NAME[/versions/VERSION]/infer → NAME[@VERSION]"""
    if not (path.startswith(_MODELS) and path.endswith(_INFER)):
        return None
    name, versions, version = path[len(_MODELS) : -len(_INFER)].partition("/versions/")
    if not name or "/" in name + version or bool(versions) != bool(version):
        return None
    return f"{name}@{version}" if version else name


def refusal(request: PlainRequest, error: GraftError, own_id: bytes, record: RequestRecord) -> Response:
    response = in_context(own_id, record, answer_to, error)
    return response.of_protocol() if request.target.operation == INFER else response


def _repeated(headers: Headers) -> set[bytes]:
    names = [name for name, _ in headers]
    return {name for name in names if names.count(name) > 1}


def _adapters(operation: OperationFunction) -> dict[str, TypeAdapter[Any]]:
    """The operation's parameters by name, which FastAPI reads from the query."""
    parameters = list(inspect.signature(operation).parameters.values())[2:]  # without the call and its images
    return {each.name: TypeAdapter(each.annotation) for each in parameters}


def _added_by(cors: Callable[[ASGIApp], ASGIApp], origin: bytes | None) -> Headers:
    """The headers that the middleware adds to an answer."""
    added: Headers = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        added.extend(message["headers"])

    headers = [] if origin is None else [(b"origin", origin)]
    work = cors(answer)({"type": "http", "method": "POST", "headers": headers}, receive, send)
    try:
        work.send(None)  # type: ignore[attr-defined]  # a coroutine, which waits for nothing
    except StopIteration:
        return added
    raise RuntimeError("the CORS middleware waits for something")


class PendingRequest:
    """One request, between its body and its answer."""

    __slots__ = (
        "_begun", "_body_size", "_client", "_deadline", "_fast_path", "_own_id", "_plan", "_record", "_request",
        "_start", "_timeout_ms",
    )  # fmt: skip

    def __init__(
        self,
        fast_path: FastPath,
        request: PlainRequest,
        own_id: bytes,
        record: RequestRecord,
        start: float,
        plan: Plan,
        body_size: int,
        client: Client,
    ) -> None:
        self._fast_path, self._request, self._own_id = fast_path, request, own_id
        self._record, self._start, self._plan, self._body_size = record, start, plan, body_size
        self._client: Client | None = client
        self._begun: PredictionTask | None = None

    def begin(self, files: Files, model: Model, timeout_ms: int) -> None:
        fast_path, self._timeout_ms = self._fast_path, timeout_ms
        fast_path.room.acquire(self._body_size)
        try:
            self._begun = fast_path.predictor.begin(files, model, self._plan.outputs, self._on_result)
        except BaseException:
            fast_path.room.release(self._body_size)
            raise
        self._deadline = fast_path.deadlines.set(timeout_ms / 1000, on_expiry=self._on_deadline)

    def disconnect(self) -> None:
        """The client has disconnected: drop the work."""
        self._drop()
        self._count(CLIENT_DISCONNECTED)

    def _on_deadline(self) -> None:
        client, request, own_id, record = self._client, self._request, self._own_id, self._record
        self._drop()
        assert client is not None
        response = refusal(request, late(self._timeout_ms), own_id, record)
        self._fast_path.send(request, response, own_id, record, client=client, since=self._start)

    def _on_result(self, result: Prediction | Exception) -> None:
        self._begun = None
        if isinstance(result, Exception):
            self._fail(result)
        elif value_count(result) <= SHAPED_ON_LOOP:
            try:
                response = self._shape(result)
            except Exception as error:
                self._fail(error)
            else:
                self._respond(result, response)
        else:
            shaping = asyncio.get_running_loop().run_in_executor(None, self._shape, result)
            shaping.add_done_callback(lambda shaping: self._on_shaped(result, shaping))

    def _shape(self, result: Prediction) -> Response:
        response = self._plan.shape(result)
        if not isinstance(response, Response):
            raise TypeError(f"{response!r:.100} is not a response")
        return response

    def _on_shaped(self, result: Prediction, shaping: "asyncio.Future[Response]") -> None:
        error = shaping.exception()
        if error is None:
            self._respond(result, shaping.result())
        else:
            self._fail(error if isinstance(error, Exception) else RuntimeError(f"shaping ended in {error!r}"))

    def _fail(self, error: Exception) -> None:
        """The ordinary path runs into the same error, and sends it to the client."""
        client = self._client
        if client is not None:
            self._release()
            self._fast_path.count_handover(error)
            client.hand_over()

    def _respond(self, result: Prediction, response: Response) -> None:
        client = self._client
        if client is None:  # disconnected or timed out while the response was shaped
            return
        self._release()
        record = self._record
        record.queue_s, record.decode_s, record.run_s = result.queue_s, result.decode_s, result.run_s
        if self._fast_path.feedback is not None:
            self._fast_path.feedback.recent.add(self._own_id.decode(), result)
        self._fast_path.send(self._request, response, self._own_id, record, client=client, since=self._start)

    def _count(self, status: int) -> None:
        self._fast_path.count(self._request, self._own_id, self._record, status, since=self._start)

    def _drop(self) -> None:
        if self._begun is not None:
            self._begun.drop()
        self._release()

    def _release(self) -> None:
        """Break all reference cycles, so that nothing is left to the garbage collector."""
        self._begun = self._client = None
        self._deadline.clear()
        self._fast_path.room.release(self._body_size)
