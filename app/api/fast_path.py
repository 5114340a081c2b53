"""The hottest path: a plain request with small images in it, answered where its bytes arrive, in front of all else.

What an application of ASGI costs, FastAPI, its middlewares and ours, a task and its messages, is several times what a
small model takes. Here a request is a function called with its body, and one called with what its batch gave:

    recognise ─▶ body ─▶ room? ─▶ files ─▶ pixels ─▶ batch ···▶ shape ─▶ answer ─▶ count
        │         │       └─ 429   │        │                     │
        └─────────┴────────────────┴────────┴─────────────────────┴─▶ whatever is not plainly good: the ordinary path

No refusal has a second shape: what this path does not answer is read anew by those that know all of it, and counted by
its reason. Only a full queue is said here, before anything is parsed: under overload a refusal has to be cheap. What
bounds others bounds this one: keys, bodies' bytes, the queue, the deadline, and that the caller may leave. How long a
body may take, and how many connections there are, is the connection's (app/serving/fast_connection.py).
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

from app.api.call import SHAPED_ON_LOOP, Call, Operation, Plan, values_of
from app.api.deadlines import Alarms
from app.api.dispatch import INFER, inferred
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
_MOST_BYTES = 64 << 10  # of a body; larger ones are parsed and decoded off the event loop
_MOST_DIGITS = 9  # of a length
_MOST_PLANS = 64
_ELSEWHERE = frozenset(  # headers that ask for what is done there
    # An upgrade that is asked for is ignored, which takes reading the head anew.
    {b"x-timeout-ms", b"content-encoding", b"transfer-encoding", b"expect", b"origin", b"upgrade"}
)
_READ = (b"content-type", b"content-length", b"accept")
_UNPLAIN = re.compile(r"[^\w./-]", re.ASCII)  # in a path: a query, or what is escaped
_JSON_LENGTH = b"inference-header-content-length"
_BETWEEN_TRACEBACKS_S = 60

# Why a request that was recognised here is answered by the ordinary path.
NOT_PLAIN, REFUSED, SLOW_BODY, LEFT, LATE, FAILED = "not-plain", "refused", "slow-body", "left", "late", "error"


class Asker(Protocol):
    """Whoever has asked: called once, one or the other, unless he leaves before."""

    def answer(self, status: int, headers: Headers, body: bytes) -> None: ...

    def hand_on(self, error: DeadlinePassed | None, record: RequestRecord) -> None:
        """To the others, for whom it shall be as if it had not been read; they tell of the error, and of the record."""


class Asked(NamedTuple):
    path: str
    operation: str
    content_type: str
    accept: str | None
    model: str | None = None  # name or name@version; of /v2 alone, as what follows
    json_length: str | None = None


# A small body of /v2, its json_length and a model → the images in it and what is to be made of them; None, and
# GraftError, where it is for the others.
Inference = Callable[[bytes, str | None, Model], tuple[np.ndarray, Plan] | None]


class Hot:
    def __init__(
        self,
        app: FastAPI,
        operations: Mapping[str, Operation],
        inference: Inference,
        room: Bytes,
        alarms: Alarms,
        keys: access.Keys,
        request_log: RequestLog,
    ) -> None:
        """`operations` by path; `room` is that of all bodies."""
        settings = app.state.settings
        self._prefix = "/" + settings.root_path.strip("/") if settings.root_path.strip("/") else ""
        paths = {**operations, **{self._prefix + path: each for path, each in operations.items()}}
        self._paths = {path.encode(): path for path in paths}
        self._app, self._operations, self._inference = app, paths, inference
        self.room, self.alarms, self.request_log, self._keys = room, alarms, request_log, keys
        self.predictor: Predictor = app.state.predictor
        self.usual: Headers = [(b"vary", b"Origin")] if settings.cors_origins else []  # as the middleware has it
        self.timeout_s: float = settings.timeout_ms / 1000
        self._most_images, self._most_bytes = settings.max_images, min(_MOST_BYTES, settings.max_body_bytes)
        self._metrics: Metrics = app.state.metrics
        self._errors = ErrorThrottle(_BETWEEN_TRACEBACKS_S)
        self._plans: dict[tuple[str, str | None, bool], tuple[weakref.ref[Model], Plan]] = {}

    def recognised(self, url: bytes, headers: Headers) -> Asked | None:
        """Of a POST."""
        path, model = self._paths.get(url), None
        if path is None:
            path = url.decode("latin-1")
            model = None if _UNPLAIN.search(path) else inferred(path.removeprefix(self._prefix))
            if model is None:
                return None
        named = dict(headers)
        if len(named) < len(headers) or not _ELSEWHERE.isdisjoint(named):  # none is there twice
            return None
        content_type, length, accept = map(named.get, _READ)
        if not (content_type or model) or length is None or not length.isdigit() or len(length) > _MOST_DIGITS:
            return None
        if int(length) > self._most_bytes:
            return None
        if self._keys and not access.holds(self._keys, {"headers": headers}):
            return None
        if model is not None:
            said = named.get(_JSON_LENGTH)
            return Asked(path, INFER, "", None, model, None if said is None else said.decode("latin-1"))
        assert content_type is not None
        kind, form = content_type.decode("latin-1"), None if accept is None else accept.decode("latin-1")
        return Asked(path, self._operations[path].__name__, kind, form)

    @property
    def wait_s(self) -> float:
        """How long an image that came now would wait, as far as that is known."""
        each = max((model.seconds for model in self.predictor.repository.all()), default=0.0)
        return self.predictor.admission.images * each

    def ask(self, asked: Asked, headers: Headers, body: bytes, asker: Asker, since: float) -> "Asking | None":
        """None where it is for the others; QueueFull is for `refuse`. `since` is when its head was whole."""
        start = perf_counter()
        model = self.predictor.repository.get(asked.model)
        admission = self.predictor.admission
        if admission.images >= admission.most or self.room.held + len(body) > self.room.most:
            admission.require(1, model.seconds)
            self.room.require(len(body))
        if asked.model is None:
            work = self._operated(asked, body, model)
        else:
            work = self._inference(body, asked.json_length, model)
        if work is None:
            return None
        images, plan = work
        bundle = model.bundle
        own, trace_id = identify(headers)
        record = RequestRecord(asked.operation, bundle.name, bundle.version, len(images), start)
        record.trace_id = trace_id
        record.decode_s = perf_counter() - start if asked.model is None else 0.0  # /v2's pixels need no decoding
        asking = Asking(self, asked.path, own, record, since, plan, len(body), asker)
        asking.begin(images, model)
        return asking

    def refuse(self, asked: Asked, headers: Headers, error: QueueFull, asker: Asker, since: float) -> None:
        """As the others would."""
        bundle = self.predictor.repository.get(asked.model).bundle
        own, trace_id = identify(headers)
        record = RequestRecord(asked.operation, bundle.name, bundle.version, trace_id=trace_id)
        refusal = in_context(own, record, answer_to, error)
        answer = refusal if asked.model is None else refusal.of_protocol()
        timing = record.timing(perf_counter() - since)
        ours = [*answer.raw_headers, (HEADER, own), (TIMING, timing), *self.usual]
        asker.answer(answer.status_code, ours, bytes(answer.body))
        scope = {"method": "POST", "path": asked.path}
        self.request_log.finished_without_context(scope, own, record, answer.status_code, perf_counter() - since)

    def handed_over(self, reason: str | Exception) -> None:
        """To the ordinary path; an exception that nothing foresaw has a line in the log."""
        if isinstance(reason, str):
            self._metrics.handed_over(reason)
        elif isinstance(reason, GraftError):
            self._metrics.handed_over(REFUSED)
        else:
            self._metrics.handed_over(FAILED)
            self._errors.error("the fast path failed, and the ordinary path answers", reason)

    def _operated(self, asked: Asked, body: bytes, model: Model) -> tuple[np.ndarray, Plan] | None:
        files = self._files(asked.content_type, body)
        if not files:
            return None
        plan = self._plan(asked, model, files)
        self.predictor.admission.require(len(files), model.seconds)
        images = self.predictor.decoded_if_quick(model.bundle, files)
        return None if images is None else (images, plan)

    def _files(self, content_type: str, body: bytes) -> list[bytes] | None:
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            boundary = boundary_of(content_type)
            return None if boundary is None else plain_files(body, boundary, self._most_images)
        return [body] if kind.startswith("image/") else None

    def _plan(self, asked: Asked, model: Model, files: list[bytes]) -> Plan:
        """The same for all requests that ask the same of a model."""
        key = asked.path, asked.accept, len(files) == 1
        known = self._plans.get(key)
        if known is not None and known[0]() is model:
            return known[1]
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        call = Call(Request({"type": "http", "app": self._app}), accept=asked.accept)
        plan = self._operations[asked.path](call, files)
        for operation in plan.needs:
            model.bundle.require(operation)
        self._plans[key] = weakref.ref(model), plan
        return plan


class Asking:
    """One request, between its body and its answer."""

    __slots__ = ("_alarm", "_asker", "_begun", "_hot", "_own", "_path", "_plan", "_record", "_room", "_start")

    def __init__(
        self, hot: Hot, path: str, own: bytes, record: RequestRecord, start: float, plan: Plan, size: int, asker: Asker
    ) -> None:
        self._hot, self._path, self._own, self._record, self._start = hot, path, own, record, start
        self._plan, self._room = plan, size
        self._asker: Asker | None = asker
        self._begun: PredictionTask | None = None

    def begin(self, images: np.ndarray, model: Model) -> None:
        hot = self._hot
        hot.room.take(self._room)
        try:
            self._begun = hot.predictor.begin(images, model, self._plan.outputs, self._came)
        except BaseException:
            hot.room.give_back(self._room)
            raise
        self._alarm = hot.alarms.set(hot.timeout_s, ring=self._late)

    def leave(self) -> None:
        """The caller has gone."""
        self._dropped()
        self._tell(CLIENT_DISCONNECTED)

    def _late(self) -> None:
        asker, milliseconds = self._asker, self._hot.timeout_s * 1000
        self._dropped()
        assert asker is not None
        told = f"not answered within {milliseconds:,.0f} ms; the work was dropped"
        self._hot.handed_over(LATE)
        asker.hand_on(DeadlinePassed(told), self._record)

    def _came(self, found: Prediction | Exception) -> None:
        self._begun = None
        if isinstance(found, Exception):
            self._failed(found)
        elif values_of(found) <= SHAPED_ON_LOOP:
            try:
                answer = self._plan.shape(found)
            except Exception as error:
                self._failed(error)
            else:
                self._shaped(found, answer)
        else:
            shaping = asyncio.get_running_loop().run_in_executor(None, self._plan.shape, found)
            shaping.add_done_callback(lambda shaping: self._after(found, shaping))

    def _after(self, found: Prediction, shaping: "asyncio.Future[Response]") -> None:
        error = shaping.exception()
        if error is None:
            self._shaped(found, shaping.result())
        else:
            self._failed(error if isinstance(error, Exception) else RuntimeError(f"shaping ended in {error!r}"))

    def _failed(self, error: Exception) -> None:
        """Who takes it from here meets it too, and tells the client of it."""
        asker = self._asker
        if asker is not None:
            self._over()
            self._hot.handed_over(error)
            asker.hand_on(None, self._record)

    def _shaped(self, found: Prediction, answer: Response) -> None:
        asker = self._asker
        if asker is None:  # who left, or was told that it is too late, while it was shaped
            return
        self._over()
        record = self._record
        record.queue_s, record.run_s = found.queue_s, found.run_s
        try:
            timing = record.timing(perf_counter() - self._start)
            headers, body = [*answer.raw_headers, (HEADER, self._own), (TIMING, timing), *self._hot.usual], answer.body
        except Exception as error:  # what was shaped is no answer
            self._hot.handed_over(error)
            asker.hand_on(None, record)
            return
        asker.answer(200, headers, bytes(body))
        self._tell(200)

    def _tell(self, status: int) -> None:
        scope = {"method": "POST", "path": self._path}
        self._hot.request_log.finished_without_context(
            scope, self._own, self._record, status, perf_counter() - self._start
        )

    def _dropped(self) -> None:
        if self._begun is not None:
            self._begun.drop()
        self._over()

    def _over(self) -> None:
        """Lets go of all that holds this: nothing shall wait for the collector of garbage."""
        self._begun = self._asker = None
        self._alarm.off()
        self._hot.room.give_back(self._room)
