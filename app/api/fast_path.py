"""The fast path: answers plain requests with small images right where their bytes arrive, in front of the ASGI app.

An ASGI application costs several times what a small model takes: FastAPI, the middleware, a task and its messages.
Here a request is two function calls, one when its body is complete and one when its batch has run:

    recognise ─▶ body ─▶ room? ─▶ files ─▶ pixels ─▶ batch ···▶ response ─▶ answer ─▶ count
        │         │       └─ 429   │        │                      │
        └─────────┴────────────────┴────────┴──────────────────────┴─▶ anything unusual: the ordinary path

Errors have one home: what this path does not answer is handed over, and the ordinary path reads it from the start. Each
handover is counted by its reason. The one refusal that is sent from here is that of a full queue, before anything is
parsed: under overload a refusal has to be cheap. All limits of the ordinary path hold here too: API keys, the bytes of
bodies, the queue, the deadline, and a client that disconnects. The limits on slow bodies and on the number of
connections belong to the connection (app/serving/fast_connection.py).
"""

import asyncio
import re
import weakref
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app.api.call import SHAPED_ON_LOOP, Call, OperationFunction, Plan, value_count
from app.api.deadlines import Deadlines
from app.api.dispatch import INFER, infer_model
from app.api.middleware import access
from app.api.multipart import boundary_of, plain_files
from app.api.problems import answer_to
from app.errors import DeadlinePassed, GraftError, QueueFull
from app.inference.admission import Bytes
from app.inference.model import Model
from app.inference.predictor import Prediction, PredictionTask, Predictor
from app.telemetry.logs import ErrorThrottle, RequestLog
from app.telemetry.metrics import Metrics
from app.telemetry.requests import CLIENT_DISCONNECTED, HEADER, TIMING, RequestRecord, identify, in_context

Headers = list[tuple[bytes, bytes]]
_MAX_BYTES = 64 << 10  # of a body; larger ones are parsed and decoded off the event loop
_MAX_LENGTH_DIGITS = 9
_MAX_PLANS = 64
_ORDINARY_PATH_HEADERS = frozenset(
    # `upgrade` because Graft ignores it, and to do so the head has to be parsed again.
    {b"x-timeout-ms", b"content-encoding", b"transfer-encoding", b"expect", b"origin", b"upgrade"}
)
_READ = (b"content-type", b"content-length", b"accept")
_NOT_PLAIN_PATH = re.compile(r"[^\w./-]", re.ASCII)  # a query string, or an escaped character
_JSON_LENGTH = b"inference-header-content-length"
_BETWEEN_TRACEBACKS_S = 60

# Why a request that was recognised here is answered by the ordinary path.
NOT_PLAIN, REFUSED, SLOW_BODY, LEFT, LATE, FAILED = "not-plain", "refused", "slow-body", "left", "late", "error"


class Client(Protocol):
    """The connection a request came by. One of the two methods is called, once, unless the client disconnects first."""

    def answer(self, status: int, headers: Headers, body: bytes) -> None: ...

    def hand_over(self, error: DeadlinePassed | None, record: RequestRecord) -> None:
        """Give the untouched request to the ordinary path. It sends the error, if there is one, with this record."""


class PlainRequest(NamedTuple):
    """What the head of a request says, as far as the fast path needs it."""

    path: str
    operation: str
    content_type: str
    accept: str | None
    model: str | None = None  # name or name@version; set under /v2 only, as is json_length
    json_length: str | None = None


# (body, JSON length, model) → (images, plan) of a small /v2 request. Returns None, or raises GraftError, where the
# ordinary path has to answer.
InferParser = Callable[[bytes, str | None, Model], tuple[np.ndarray, Plan] | None]


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
    ) -> None:
        """`operations` by path; `room` is shared with the bodies on the ordinary path."""
        settings = app.state.settings
        self._root_path = "/" + settings.root_path.strip("/") if settings.root_path.strip("/") else ""
        paths = {**operations, **{self._root_path + path: each for path, each in operations.items()}}
        self._paths = {path.encode(): path for path in paths}
        self._app, self._operations, self._parse_infer = app, paths, parse_infer
        self.room, self.deadlines, self.request_log, self._keys = room, deadlines, request_log, keys
        self.predictor: Predictor = app.state.predictor
        self.extra_headers: Headers = [(b"vary", b"Origin")] if settings.cors_origins else []  # as CORSMiddleware adds
        self.timeout_s: float = settings.timeout_ms / 1000
        self._max_images, self._max_bytes = settings.max_images, min(_MAX_BYTES, settings.max_body_bytes)
        self._metrics: Metrics = app.state.metrics
        self._errors = ErrorThrottle(_BETWEEN_TRACEBACKS_S)
        self._plans: dict[tuple[str, str | None, bool], tuple[weakref.ref[Model], Plan]] = {}

    def recognise(self, url: bytes, headers: Headers) -> PlainRequest | None:
        """The head of a POST → the request, or None if the ordinary path has to answer it."""
        path, model = self._paths.get(url), None
        if path is None:
            path = url.decode("latin-1")
            model = None if _NOT_PLAIN_PATH.search(path) else infer_model(path.removeprefix(self._root_path))
            if model is None:
                return None
        by_name = dict(headers)
        if len(by_name) < len(headers) or not _ORDINARY_PATH_HEADERS.isdisjoint(by_name):  # no header may be repeated
            return None
        content_type, length, accept = map(by_name.get, _READ)
        if not (content_type or model) or length is None or not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
            return None
        if int(length) > self._max_bytes:
            return None
        if self._keys and not access.has_key(self._keys, {"headers": headers}):
            return None
        if model is not None:
            json_length = by_name.get(_JSON_LENGTH)
            return PlainRequest(
                path=path,
                operation=INFER,
                content_type="",
                accept=None,
                model=model,
                json_length=None if json_length is None else json_length.decode("latin-1"),
            )
        assert content_type is not None
        accepted = None if accept is None else accept.decode("latin-1")
        return PlainRequest(path, self._operations[path].__name__, content_type.decode("latin-1"), accepted)

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
        model = self.predictor.repository.get(request.model)
        admission = self.predictor.admission
        if admission.images >= admission.most or self.room.held + len(body) > self.room.most:
            admission.require(1, model.seconds)
            self.room.require(len(body))
        if request.model is None:
            parsed = self._parse_operation(request, body, model)
        else:
            parsed = self._parse_infer(body, request.json_length, model)
        if parsed is None:
            return None
        images, plan = parsed
        bundle = model.bundle
        own_id, trace_id = identify(headers)
        record = RequestRecord(
            operation=request.operation, model=bundle.name, version=bundle.version, images=len(images), body_read=start
        )
        record.trace_id = trace_id
        record.decode_s = perf_counter() - start if request.model is None else 0.0  # /v2 sends pixels
        pending = PendingRequest(
            self,
            path=request.path,
            own_id=own_id,
            record=record,
            start=since,
            plan=plan,
            body_size=len(body),
            client=client,
        )
        pending.begin(images, model)
        return pending

    def refuse(self, request: PlainRequest, headers: Headers, error: QueueFull, client: Client, since: float) -> None:
        """Send the same refusal as the ordinary path would."""
        bundle = self.predictor.repository.get(request.model).bundle
        own_id, trace_id = identify(headers)
        record = RequestRecord(request.operation, bundle.name, bundle.version, trace_id=trace_id)
        refusal = in_context(own_id, record, answer_to, error)
        response = refusal if request.model is None else refusal.of_protocol()
        timing = record.timing(perf_counter() - since)
        sent = [*response.raw_headers, (HEADER, own_id), (TIMING, timing), *self.extra_headers]
        client.answer(response.status_code, sent, bytes(response.body))
        scope = {"method": "POST", "path": request.path}
        self.request_log.finished_without_context(
            scope, own_id=own_id, record=record, status=response.status_code, seconds=perf_counter() - since
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

    def _parse_operation(self, request: PlainRequest, body: bytes, model: Model) -> tuple[np.ndarray, Plan] | None:
        files = self._files(request.content_type, body)
        if not files:
            return None
        plan = self._plan(request, model, files)
        self.predictor.admission.require(len(files), model.seconds)
        images = self.predictor.decoded_if_quick(model.bundle, files)
        return None if images is None else (images, plan)

    def _files(self, content_type: str, body: bytes) -> list[bytes] | None:
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == "multipart/form-data":
            boundary = boundary_of(content_type)
            return None if boundary is None else plain_files(body, boundary, self._max_images)
        return [body] if media_type.startswith("image/") else None

    def _plan(self, request: PlainRequest, model: Model, files: list[bytes]) -> Plan:
        """Cached: a plan depends on nothing but the key below and the model."""
        key = request.path, request.accept, len(files) == 1
        cached = self._plans.get(key)
        if cached is not None and cached[0]() is model:
            return cached[1]
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        call = Call(Request({"type": "http", "app": self._app}), accept=request.accept)
        plan = self._operations[request.path](call, files)
        for operation in plan.needs:
            model.bundle.require(operation)
        self._plans[key] = weakref.ref(model), plan
        return plan


class PendingRequest:
    """One request, between its body and its answer."""

    __slots__ = (
        "_begun", "_body_size", "_client", "_deadline", "_fast_path", "_own_id", "_path", "_plan", "_record", "_start",
    )  # fmt: skip

    def __init__(
        self,
        fast_path: FastPath,
        path: str,
        own_id: bytes,
        record: RequestRecord,
        start: float,
        plan: Plan,
        body_size: int,
        client: Client,
    ) -> None:
        self._fast_path, self._path, self._own_id, self._record, self._start = fast_path, path, own_id, record, start
        self._plan, self._body_size = plan, body_size
        self._client: Client | None = client
        self._begun: PredictionTask | None = None

    def begin(self, images: np.ndarray, model: Model) -> None:
        fast_path = self._fast_path
        fast_path.room.acquire(self._body_size)
        try:
            self._begun = fast_path.predictor.begin(images, model, self._plan.outputs, self._on_result)
        except BaseException:
            fast_path.room.release(self._body_size)
            raise
        self._deadline = fast_path.deadlines.set(fast_path.timeout_s, on_expiry=self._on_deadline)

    def disconnect(self) -> None:
        """The client has disconnected: drop the work."""
        self._drop()
        self._count(CLIENT_DISCONNECTED)

    def _on_deadline(self) -> None:
        client, milliseconds = self._client, self._fast_path.timeout_s * 1000
        self._drop()
        assert client is not None
        self._fast_path.count_handover(LATE)
        message = f"not answered within {milliseconds:,.0f} ms; the work was dropped"
        client.hand_over(DeadlinePassed(message), self._record)

    def _on_result(self, result: Prediction | Exception) -> None:
        self._begun = None
        if isinstance(result, Exception):
            self._fail(result)
        elif value_count(result) <= SHAPED_ON_LOOP:
            try:
                response = self._plan.shape(result)
            except Exception as error:
                self._fail(error)
            else:
                self._respond(result, response)
        else:
            shaping = asyncio.get_running_loop().run_in_executor(None, self._plan.shape, result)
            shaping.add_done_callback(lambda shaping: self._on_shaped(result, shaping))

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
            client.hand_over(None, self._record)

    def _respond(self, result: Prediction, response: Response) -> None:
        client = self._client
        if client is None:  # disconnected or timed out while the response was shaped
            return
        self._release()
        record = self._record
        record.queue_s, record.run_s = result.queue_s, result.run_s
        try:
            timing = record.timing(perf_counter() - self._start)
            extra = self._fast_path.extra_headers
            headers, body = [*response.raw_headers, (HEADER, self._own_id), (TIMING, timing), *extra], response.body
        except Exception as error:  # `shape` returned something that is not a response
            self._fast_path.count_handover(error)
            client.hand_over(None, record)
            return
        client.answer(200, headers, bytes(body))
        self._count(200)

    def _count(self, status: int) -> None:
        scope = {"method": "POST", "path": self._path}
        self._fast_path.request_log.finished_without_context(
            scope, own_id=self._own_id, record=self._record, status=status, seconds=perf_counter() - self._start
        )

    def _drop(self) -> None:
        if self._begun is not None:
            self._begun.drop()
        self._release()

    def _release(self) -> None:
        """Break all reference cycles, so that nothing is left to the garbage collector."""
        self._begun = self._client = None
        self._deadline.clear()
        self._fast_path.room.release(self._body_size)
