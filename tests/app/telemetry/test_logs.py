"""Log lines; most are read from a real process."""

import contextlib
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import serving

import app
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.main import create_app
from app.settings import Settings
from app.telemetry.logs import ErrorThrottle, LogFormat, LogRequests, RequestLog, configure_logs, log
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord, current_record, request_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")} | {
    "PYTHONPATH": str(Path(app.__file__).parents[1])
}


@contextlib.contextmanager
def logging_service(models: Path, **settings: str) -> Iterator[tuple[str, list[str]]]:
    """(address, lines). `lines` holds the service's standard error after the block has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--port", "0", "--models", str(models)],
        env={**ENVIRONMENT, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    try:
        assert process.stdout
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        assert found, process.communicate(timeout=20)
        yield found[0], lines
    finally:
        process.terminate()
        lines += process.communicate(timeout=20)[1].splitlines()


@contextlib.contextmanager
def configured(kind: LogFormat) -> Iterator[io.StringIO]:
    """What the formatter writes, in this process. Restores the configuration of logging at the end."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, log.level
    configure_logs(kind)
    written = io.StringIO()
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    try:
        yield written
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level, log.level = before


def objects(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_in_json_every_line_is_one_object_with_the_facts_of_its_request(models: Path) -> None:
    with logging_service(models, GRAFT_LOG_FORMAT="json", GRAFT_LOG_REQUESTS="all") as (url, lines):
        headers = {"x-request-id": "mine", "traceparent": PARENT}
        httpx.post(f"{url}/v1/classify", files={"image": png(garment("bag"))}, headers=headers).raise_for_status()
        httpx.post(f"{url}/v1/classify", files={"image": b"no image"})
    loaded, good, bad = objects(lines)
    assert loaded["message"].startswith("loaded tiny@1")
    assert loaded["request_id"] == "-"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", good["time"])
    fields = {
        name: good[name] for name in ("level", "message", "request_id", "trace_id", "method", "path", "operation")
    }
    assert fields == {
        "level": "info",
        "message": "POST /v1/classify 200",
        "request_id": "mine",
        "trace_id": TRACE,
        "method": "POST",
        "path": "/v1/classify",
        "operation": "classify",
    }
    assert good["status"] == 200
    assert 0 < good["total_ms"] < 10_000
    assert "problem" not in good
    assert (bad["status"], bad["problem"], "trace_id" in bad) == (415, "not-an-image", False)


def test_by_default_only_errors_are_logged_and_with_none_nothing_is(models: Path) -> None:
    for setting, expected in (("", ["GET /nowhere 404", "POST /v1/classify 415"]), ("none", [])):
        with logging_service(models, GRAFT_LOG_FORMAT="json", GRAFT_LOG_REQUESTS=setting) as (url, lines):
            httpx.get(f"{url}/healthz").raise_for_status()
            httpx.get(f"{url}/nowhere")
            httpx.post(f"{url}/v1/classify", files={"image": b"no image"})
        assert [line["message"] for line in objects(lines) if "status" in line] == expected


@pytest.mark.parametrize("kind", ["text", "json"])
def test_clients_cannot_forge_log_lines(models: Path, kind: str) -> None:
    """Neither in the percent-decoded path, nor in headers, nor in the line about a malformed request."""
    forged = "/x%0A2026-01-01%20ERROR%20-%20stolen%1B[31m%C2%85%E2%80%A8%E2%80%AEy"
    with logging_service(models, GRAFT_LOG_FORMAT=kind) as (url, lines):
        send_raw(url, f"GET {forged} HTTP/1.1\r\nHost: x")
        send_raw(url, "GET /control HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\x1b[31mb")
        send_raw(url, "GET /latin HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\x85b\r\ntraceparent: 00-\x9b31m")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2026-01-01 ERROR") for line in lines)
    assert len([line for line in lines if "stolen" in line]) == 1
    assert any("GET /latin 404" in line for line in lines)
    if kind == "json":
        messages = [line["message"] for line in objects(lines)]
        assert any(message.endswith("was refused with 400: malformed HTTP request") for message in messages)
        assert any("\n2026-01-01 ERROR - stolen\x1b[31m" in message for message in messages)


def test_a_flood_of_malformed_heads_has_few_lines(models: Path) -> None:
    """Every head is in a line or in a count, and a second has at most ten lines."""
    heads, start = 200, time.monotonic()
    with logging_service(models) as (url, lines):
        for _ in range(heads):
            send_raw(url, "not HTTP")
        seconds = time.monotonic() - start
    own = [line for line in lines if "malformed HTTP request" in line]
    counts = [re.search(r"([\d,]+) more requests? w\w+ refused: malformed-request", line) for line in lines]
    assert len(own) + sum(int(count[1]) for count in counts if count) == heads
    assert 10 <= len(own) <= 10 * (1 + seconds)
    assert len(lines) <= len(own) + len([count for count in counts if count]) + 5  # nothing else writes one for each


def send_raw(url: str, head: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
        raw.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        while raw.recv(4096):
            pass


def test_in_text_the_facts_of_a_request_follow_its_message(models: Path) -> None:
    with logging_service(models) as (url, lines):
        headers = {"x-request-id": "mine", "traceparent": PARENT}
        httpx.post(f"{url}/v1/classify", files={"image": b"no image"}, headers=headers)
    loaded, refused = lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO - loaded tiny@1 [0-9a-f]{12} .*", loaded)
    pairs = rf"trace_id={TRACE} operation=classify model=tiny version=1 images=1 total_ms=\d+\.\d+ problem=not-an-image"
    assert re.fullmatch(rf"\S+ \S+ INFO mine POST /v1/classify 415 {pairs}", refused)


def test_the_lines_of_a_traceback_are_indented_or_escaped() -> None:
    for kind in ("text", "json"):
        with configured(kind) as written:  # type: ignore[arg-type]
            try:
                raise RuntimeError("one\n2026-01-01 ERROR - forged\x1b[31m")
            except RuntimeError as error:
                log.error("unexpected", exc_info=error)
            logging.getLogger("some.library").warning("a\nb", extra={"further": "c\nd"})
        first, *rest = written.getvalue().splitlines()
        assert "unexpected" in first
        if kind == "json":
            assert "forged\x1b[31m" in json.loads(first)["exception"]
            assert json.loads(rest[0])["further"] == "c\nd"
            assert len(rest) == 1
        else:
            assert all(line.startswith("  ") for line in rest[:-1])
            assert "\x1b" not in written.getvalue()
            assert rest[-1].endswith(r"a\x0ab further=c\x0ad")


def test_a_python_warning_is_logged() -> None:
    code = "import warnings, app.telemetry.logs as o; o.configure_logs('json'); warnings.warn('odd\\nly')"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    [line] = objects(done.stderr.splitlines())
    assert line["level"] == "warning"
    assert "odd\nly" in line["message"]


def test_facts_that_a_handler_fills_in_are_counted_logged_and_in_the_header(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = create_app(Settings(models=models, log_requests="all"))

    @service.get("/v2/models/{name}/infer")
    async def infer(name: str) -> str:
        record = current_record()
        record.model, record.version, record.images = name, 1, 3
        record.queue_s, record.decode_s, record.run_s = 0.001, 0.002, 0.003
        return "done"

    with caplog.at_level(logging.INFO, "graft"), serving(Settings(models=models), service) as client:
        timing = client.get("/v2/models/tiny/infer").headers["server-timing"]
        metrics = client.get("/metrics").text
    assert timing.startswith("queue;dur=1.000, decode;dur=2.000, run;dur=3.000, total;dur=")
    labels = 'model="tiny",operation="infer",status="200",version="1"'
    assert f"graft_requests_total{{{labels}}} 1.0" in metrics
    assert 'graft_queue_seconds_count{model="tiny",version="1"} 1.0' in metrics
    assert 'graft_decode_seconds_sum{model="tiny",version="1"} 0.002' in metrics
    [line] = [vars(r) for r in caplog.records if r.getMessage().startswith("GET /v2/models/tiny/infer")]
    known = {name: line[name] for name in ("model", "version", "images", "queue_ms", "decode_ms", "run_ms")}
    assert known == {"model": "tiny", "version": 1, "images": 3, "queue_ms": 1, "decode_ms": 2, "run_ms": 3}


def test_tracebacks_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    times = iter((100.0, 100.0, 130.0, 159.0, 160.0, 161.0))
    throttle = ErrorThrottle(60, clock=lambda: next(times))
    for _ in range(6):
        try:
            raise ValueError("odd")
        except ValueError as error:
            throttle.error("it failed", error)
    assert [record.getMessage() for record in caplog.records] == [
        "it failed: ValueError",
        "it failed: ValueError (3 more since the last such line)",
    ]
    assert all(record.exc_info and record.exc_info[2] for record in caplog.records)


@pytest.mark.parametrize("log_requests", ["errors", "all"])
def test_lines_of_requests_refused_for_overload_are_bounded_and_the_rest_is_summed_up(
    caplog: pytest.LogCaptureFixture, log_requests: LogRequests
) -> None:
    flood = Flood(log_requests)
    with caplog.at_level(logging.INFO, "graft"):
        for second in (100.0, 101.5):
            flood.now = second
            for _ in range(1_244):
                flood.refuse("queue-full", 429)
        flood.refuse("too-many-connections", 503)
        flood.now = 102.4
        flood.refuse("malformed-request", 400)  # within the second: logged, and no summary yet
        flood.now = 102.5
        flood.refuse("malformed-request", 400)
    line, more = "POST /v1/classify", "1,234 more requests were refused: queue-full"
    assert [record.getMessage() for record in caplog.records] == [
        *[f"{line} 429"] * 10,
        more,
        *[f"{line} 429"] * 10,
        f"{line} 400",
        more,
        "1 more request was refused: too-many-connections",
        f"{line} 400",
    ]
    counted = flood.metrics.exposition().decode()
    assert 'graft_requests_refused_total{type="queue-full"} 2488.0' in counted
    assert 'graft_requests_refused_total{type="too-many-connections"} 1.0' in counted
    assert re.search(r'graft_requests_total\{.*status="429".*\} 2488\.0', counted)


def test_the_next_request_logs_the_summary_and_so_does_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flood = Flood("errors")
    with caplog.at_level(logging.INFO, "graft"):
        for problem, end in (("queue-full", lambda: flood.answer()), ("too-many-connections", flood.request_log.close)):
            for _ in range(12):
                flood.refuse(problem, 429)
            caplog.clear()
            flood.now += 1
            end()
            assert [record.getMessage() for record in caplog.records] == [f"2 more requests were refused: {problem}"]
            flood.request_log.close()
            assert len(caplog.records) == 1


def test_lines_of_refused_heads_are_bounded_apart_from_those_of_overload(caplog: pytest.LogCaptureFixture) -> None:
    flood = Flood("errors")
    with caplog.at_level(logging.INFO, "graft"):
        for _ in range(12):
            flood.request_log.head_refused("10.0.0.1", 400, "malformed-request", "malformed HTTP request")
            flood.refuse("queue-full", 429)
        flood.request_log.close()
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("a request from 10.0.0.1 was refused with 400: malformed HTTP request") == 10
    assert messages.count("POST /v1/classify 429") == 10
    assert messages[-2:] == [
        "2 more requests were refused: queue-full",
        "2 more requests were refused: malformed-request",
    ]


def test_with_none_a_flood_has_no_lines_and_no_summary(caplog: pytest.LogCaptureFixture) -> None:
    flood = Flood("none")
    with caplog.at_level(logging.INFO, "graft"):
        for _ in range(50):
            flood.refuse("queue-full", 429)
            flood.request_log.head_refused("10.0.0.1", 408, "head-too-slow", "too slow")
        flood.request_log.close()
    assert not caplog.records


def test_the_summary_belongs_to_no_request() -> None:
    flood = Flood("errors")
    with configured("json") as written:
        token = request_id.set("mine")
        for _ in range(11):
            flood.refuse("queue-full", 429)
        flood.request_log.close()
        request_id.reset(token)
    *lines, last = objects(written.getvalue().splitlines())
    assert {line["request_id"] for line in lines} == {"own"}
    assert (last["request_id"], last["level"]) == ("-", "warning")


class Flood:
    """Requests that end at the time `now`."""

    def __init__(self, log_requests: LogRequests) -> None:
        self.now, self.metrics = 100.0, Metrics("1")
        self.request_log = RequestLog(self.metrics, log_requests, clock=lambda: self.now)

    def refuse(self, problem: str, status: int) -> None:
        self._end(RequestRecord("classify", problem=problem), status)

    def answer(self) -> None:
        self._end(RequestRecord("classify"), 200)

    def _end(self, record: RequestRecord, status: int) -> None:
        self.request_log.finished_without_context(
            {"method": "POST", "path": "/v1/classify"}, b"own", record, status, 0.001
        )


def test_a_stopped_service_has_logged_every_refusal(models: Path) -> None:
    with logging_service(models, GRAFT_MAX_CONNECTIONS="1", GRAFT_LOG_FORMAT="json") as (url, lines):
        address = "127.0.0.1", int(url.rpartition(":")[2])
        with socket.create_connection(address):
            for _ in range(25):
                send_raw(url, "POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 0")
    messages = [line["message"] for line in objects(lines)]
    summaries = [int(match[1]) for text in messages if (match := re.match(r"(\d+) more requests? w", text))]
    assert summaries
    assert sum(summaries) + messages.count("POST /v1/classify 503") == 25
