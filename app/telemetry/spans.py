"""Spans of requests for OpenTelemetry: one for each, with a child for each stage. Imported only where they are wanted.

The SDK's own environment variables say where spans go and which. A span begins with its request; its stages are known
when the request has ended, and are written then:

    request ├─ (the body) ─┤ admit ├ decode ├ queue ├ run ├ shape ┤
"""

import os
import threading
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from app.telemetry.requests import RequestRecord, Scope, request_id

_FLUSH_S = 2.0  # that a stop waits for the last spans
_LONGEST_PATH = 200
_HEALTH = ("/healthz", "/readyz", "/metrics", "/health/live", "/health/ready", "/ServerLive", "/ServerReady")


class Spans:
    def __init__(self, exporter: SpanExporter, version: str) -> None:
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        attributes = {"service.version": version} | ({} if named else {"service.name": "graft"})
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("graft", version)

    def begin(self, headers: list[tuple[bytes, bytes]], trace_id: str | None) -> RequestRecord:
        """The record of a request whose span begins now; without a valid trace id it begins a trace."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        parent = Context() if trace_id is None else propagate.extract(carrier, Context())
        span: Any = self._tracer.start_span("request", parent, kind=trace.SpanKind.SERVER)
        context = span.get_span_context()
        ids = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
        record = RequestRecord(trace_id=ids[0], span=span)
        record.traceresponse = f"00-{ids[0]}-{ids[1]}-{context.trace_flags:02x}".encode()
        return record

    def finished(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        span, end = record.span, perf_counter()
        if span is None or scope["path"].endswith(_HEALTH) or not span.is_recording():
            return
        began = end - seconds
        route = getattr(scope.get("route"), "path", None)
        facts = {
            "http.request.method": scope["method"],
            "http.route": route,
            "url.path": scope["path"][:_LONGEST_PATH],
            "http.response.status_code": status,
            "error.type": record.problem,
            "graft.request_id": request_id.get(),
            "graft.model": record.model,
            "graft.version": record.version,
            "graft.images": record.images,
        }
        span.update_name(f"{scope['method']} {route or record.operation}")
        span.set_attributes({name: value for name, value in facts.items() if value is not None})
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)

        def nanoseconds(at: float) -> int:
            return int(span.start_time + 1e9 * (at - began))

        within = trace.set_span_in_context(span, Context())
        for name, start, stop in _stages(record, end):
            child = self._tracer.start_span(name, within, start_time=nanoseconds(start))
            child.end(nanoseconds(stop))
        span.end(nanoseconds(end))

    def close(self) -> None:
        """Sends the last spans, if that does not take long: the collector may be gone."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_FLUSH_S)


def _stages(record: RequestRecord, end: float) -> Iterator[tuple[str, float, float]]:
    """(name, start, end), one after the other, of a request that ran a model."""
    decode, queue, run = record.decode_s, record.queue_s, record.run_s
    if record.body_read is None or record.ran_at is None or decode is None or queue is None or run is None:
        return
    ran = record.ran_at
    ends = {
        "admit": ran - run - queue - decode,
        "decode": ran - run - queue,
        "queue": ran - run,
        "run": ran,
        "shape": end,
    }
    start = record.body_read
    for name, stop in ends.items():
        stop = max(start, stop)  # of several batches the runs are added up, and queues overlap
        yield name, start, stop
        start = stop


def exporter_of(environment: Mapping[str, str]) -> SpanExporter:
    """By OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL. Raises ImportError without its package."""
    kind = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if kind == "console":
        return ConsoleSpanExporter()
    if kind != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER={kind}: otlp, console and none are supported")
    general = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or general
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter

        exporter: SpanExporter = trace_exporter.OTLPSpanExporter()
        return exporter
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: http/protobuf and grpc are supported")
