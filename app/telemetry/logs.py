"""The log: a line per finished request, formatters for text and JSON, and throttles against floods of lines.

A leaf: imports only the rest of app.telemetry and the standard library.
"""

import json
import logging
import math
import textwrap
import time
from collections.abc import Callable, Mapping
from contextvars import Context
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from typing import Literal

from app.telemetry.metrics import OPERATIONS, UNKNOWN, Metrics
from app.telemetry.requests import RequestRecord, Scope, current_record, in_context, request_id

LogFormat = Literal["text", "json"]
LogRequests = Literal["errors", "all", "none"]

_LONGEST_PATH = 200  # characters of a path in the log
OVERLOAD = frozenset({"queue-full", "too-many-connections"})  # problems whose log lines are bounded
_REFUSAL_LINES = 10  # per second and worker

log = logging.getLogger("graft")


class RequestLog:
    """Counts every finished request, and logs those that `log_requests` selects.

    Lines of requests that cost their client nothing are bounded: those refused for overload, and those whose head is
    malformed, slow or too large. Writing one costs more than the rest of the refusal, and a flood would fill the disk.
    """

    def __init__(
        self,
        metrics: Metrics,
        log_requests: LogRequests = "errors",
        clock: Callable[[], float] = monotonic,
        trace: Callable[[Scope, RequestRecord, int, float], None] | None = None,
    ) -> None:
        """`trace` is called with each request that ran in a context of its own, its status and seconds."""
        self._metrics, self._log_requests, self._trace = metrics, log_requests, trace
        self._overload, self._heads = RefusalThrottle(clock), RefusalThrottle(clock)

    def finished(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        operation = self._count(scope, record, status, seconds)
        if self._should_log(record, status):
            _log_access(scope, operation, record=record, status=status, seconds=seconds)
        if self._trace is not None:
            self._trace(scope, record, status, seconds)

    def finished_without_context(
        self, scope: Scope, own_id: bytes, record: RequestRecord, status: int, seconds: float
    ) -> None:
        """The same for a request that ran in no context of its own: its log line gets its id and record here."""
        operation = self._count(scope, record, status, seconds)
        if self._should_log(record, status):
            in_context(own_id, record, _log_access, scope, operation, record, status, seconds)

    def head_refused(self, client: str, status: int, problem: str, detail: str) -> None:
        """For a request that was refused before its head was complete. The metrics do not count it."""
        self._flush_if_due()
        if self._log_requests != "none" and self._heads.allows(problem):
            log.info("a request from %s was refused with %d: %s", client, status, detail)

    def close(self) -> None:
        """Logs how many refusals have no line yet."""
        self._overload.flush()
        self._heads.flush()

    def _count(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> str:
        """Adds the request to the metrics; returns its operation."""
        operation = record.operation or _operation(getattr(scope.get("route"), "path", ""))
        metrics, model, version = self._metrics, record.model, record.version
        metrics.request(operation, model, version, status=status, seconds=seconds)
        if record.problem is not None:
            metrics.refused(record.problem)
        if record.queue_s is not None:
            metrics.observe_queue(model, version, record.queue_s)
        if record.decode_s is not None:
            metrics.observe_decoding(model, version, record.decode_s)
        return operation

    def _should_log(self, record: RequestRecord, status: int) -> bool:
        self._flush_if_due()
        if self._log_requests == "none" or (self._log_requests == "errors" and status < 400):
            return False
        return record.problem not in OVERLOAD or self._overload.allows(record.problem)

    def _flush_if_due(self) -> None:
        self._overload.flush_if_due()
        self._heads.flush_if_due()


class RefusalThrottle:
    """Allows ten lines a second, and counts the rest by problem. The counts are logged when the second has passed: by
    the next request, whatever it is, or at shutdown. There is no timer."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._until, self._allowed = -math.inf, 0  # of the current second
        self._suppressed: dict[str, int] = {}

    def allows(self, problem: str) -> bool:
        now = self._clock()
        if now >= self._until:
            self._until, self._allowed = now + 1, 0
        if self._allowed < _REFUSAL_LINES:
            self._allowed += 1
            return True
        self._suppressed[problem] = self._suppressed.get(problem, 0) + 1
        return False

    def flush_if_due(self) -> None:
        if self._suppressed and self._clock() >= self._until:
            self.flush()

    def flush(self) -> None:
        suppressed, self._suppressed = self._suppressed, {}
        for problem, count in suppressed.items():
            requests = "request was" if count == 1 else "requests were"
            # In an empty context: the line belongs to no request.
            Context().run(log.warning, "%s more %s refused: %s", f"{count:,}", requests, problem)


@lru_cache(256)
def _operation(route: str) -> str:
    """/v1/classify → classify; /v2/models/{name}/infer → infer; other routes → "-"."""
    literal = [part for part in route.split("/") if part and not part.startswith("{")]
    return literal[-1] if literal and literal[-1] in OPERATIONS else UNKNOWN


def _log_access(scope: Scope, operation: str, record: RequestRecord, status: int, seconds: float) -> None:
    path = scope["path"][:_LONGEST_PATH]
    times = {"queue": record.queue_s, "decode": record.decode_s, "run": record.run_s, "total": seconds}
    fields = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "operation": None if operation == UNKNOWN else operation,
        "model": record.model,
        "version": record.version,
        "images": record.images,
        **{f"{name}_ms": None if s is None else round(s * 1000, 3) for name, s in times.items()},
        "problem": record.problem,
    }
    level = logging.WARNING if status >= 500 else logging.INFO
    known = {name: value for name, value in fields.items() if value is not None}
    log.log(level, "%s %s %d", scope["method"], path, status, extra=known)


class ErrorThrottle:
    """Logs at most one traceback per `seconds`: a fault in every request must not fill the disk."""

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._until, self._suppressed = -math.inf, 0

    def error(self, message: str, error: BaseException) -> None:
        now = self._clock()
        if now < self._until:
            self._suppressed += 1
            return
        more = f" ({self._suppressed:,} more since the last such line)" if self._suppressed else ""
        self._until, self._suppressed = now + self._seconds, 0
        log.error("%s: %s%s", message, type(error).__name__, more, exc_info=error)


def configure_logs(kind: LogFormat = "text") -> None:
    """Sends the logs of the service, uvicorn and libraries, and warnings, to standard error: one event per line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if kind == "json" else _Text())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # Our formats show no thread, process or line of code; finding them out takes as long as writing the line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as advised in Python's documentation, "Optimization" under logging


_STANDARD = {
    *vars(logging.makeLogRecord({})),
    "message",
    "asctime",
    "color_message",
}  # attributes of every record; others are extra fields
_SHOWN = ("method", "path", "status")  # fields that the message of a request's line contains
_CONTROL = (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROL}


def _extra(record: logging.LogRecord) -> Mapping[str, object]:
    trace_id = current_record().trace_id
    trace = {"trace_id": trace_id} if trace_id else {}
    return trace | {name: value for name, value in vars(record).items() if name not in _STANDARD}


class _Text(logging.Formatter):
    """Time, level, request id, message, then name=value. Control characters are escaped; tracebacks are indented."""

    _second, _formatted = -1, ""  # the latest second, and its text

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        second = int(record.created)
        if second != self._second:
            self._second, self._formatted = second, time.strftime("%Y-%m-%d %H:%M:%S", self.converter(second))
        return f"{self._formatted},{int(record.msecs):03d}"

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {name}={value}" for name, value in _extra(record).items() if name not in _SHOWN)
        head = f"{self.formatTime(record)} {record.levelname} {request_id.get()} "
        line = head + f"{record.getMessage()}{pairs}".rstrip().translate(_ESCAPES)
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            line += "\n" + textwrap.indent("\n".join(part.translate(_ESCAPES) for part in lines), "  ")
        return line


class _Json(logging.Formatter):
    """One JSON object per line, in ASCII: all other characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage().rstrip(),
            "request_id": request_id.get(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
