"""Spans as a collector receives them: over HTTP, as the protocol's own messages, sent by the SDK's own exporter."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support import eventually, save_tiny, serving, stopped

from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.main import create_app
from app.settings import Settings

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` has it")
trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

from app.telemetry.spans import exporter_of  # noqa: E402

GOOD = png(garment(GARMENTS[0]))
STAGES = ["admit", "decode", "queue", "run", "shape"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        received = self._received = list[bytes]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def resources(self) -> list[Any]:
        requests = [trace_service.ExportTraceServiceRequest.FromString(body) for body in list(self._received)]
        return [each for request in requests for each in request.resource_spans]

    def spans(self) -> list[Any]:
        return [span for each in self.resources() for scope in each.scope_spans for span in scope.spans]

    def trace(self, root: str, count: int) -> list[Any]:
        """The root span with its children, in the order of time, once so many are there."""

        def found() -> list[Any]:
            return [each for each in self.spans() if root in (each.span_id.hex(), each.parent_span_id.hex())]

        assert eventually(lambda: len(found()) == count), [each.name for each in self.spans()]
        return sorted(found(), key=lambda each: (each.span_id.hex() != root, each.start_time_unix_nano))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def app(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    models = tmp_path_factory.mktemp("models")
    save_tiny(models)
    port = None if find_spec("grpc") is None else 0
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        return create_app(Settings(models=models, grpc_port=port))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with serving(app.state.settings, app) as client:
        yield client


def facts(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def root_of(answer: httpx.Response) -> str:
    version, _, span, _ = answer.headers["traceresponse"].split("-")
    assert version == "00"
    return str(span)


def test_a_request_has_a_span_and_its_stages_in_the_clients_trace(client: httpx.Client, collector: Collector) -> None:
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    answer = client.post("/v1/classify?top_k=1", files={"image": GOOD}, headers=sent)
    assert answer.headers["traceresponse"].startswith(f"00-{TRACE}-")
    root, *stages = collector.trace(root_of(answer), 1 + len(STAGES))
    assert (root.name, root.trace_id.hex(), root.parent_span_id.hex()) == ("POST /v1/classify", TRACE, PARENT)
    assert [stage.name for stage in stages] == STAGES
    assert {stage.trace_id.hex() for stage in stages} == {TRACE}
    times = [time for each in stages for time in (each.start_time_unix_nano, each.end_time_unix_nano)]
    assert times == sorted(times)
    assert root.start_time_unix_nano <= times[0]
    assert times[-1] <= root.end_time_unix_nano
    found = facts(root)
    expected = {"http.request.method": "POST", "http.response.status_code": 200, "url.path": "/v1/classify"}
    expected |= {"graft.model": "tiny", "graft.version": 1, "graft.images": 1, "graft.request_id": "mine"}
    assert expected.items() <= found.items()
    resource = facts(collector.resources()[0].resource)
    assert resource["service.name"] == "graft"


def test_a_request_without_a_trace_begins_one_and_an_error_is_named(client: httpx.Client, collector: Collector) -> None:
    answer = client.post("/v1/classify", files={"image": b"text"})
    [root] = collector.trace(root_of(answer), 1)
    assert root.parent_span_id == b""
    assert facts(root)["error.type"] == "not-an-image"
    assert facts(root)["http.response.status_code"] == 415
    assert root.status.code == 0, "the client's fault is no error of the service"


def test_a_trace_that_is_not_sampled_stays_so_and_health_calls_have_none(
    client: httpx.Client, collector: Collector
) -> None:
    quiet = "1" * 32
    sent = {"traceparent": f"00-{quiet}-{PARENT}-00"}
    answer = client.post("/v1/classify", files={"image": GOOD}, headers=sent)
    assert answer.headers["traceresponse"].endswith("-00")
    client.get("/healthz")
    last = client.get("/v1/models")
    collector.trace(root_of(last), 1)
    assert quiet not in {each.trace_id.hex() for each in collector.spans()}
    assert not [each.name for each in collector.spans() if "healthz" in each.name]


def test_calls_over_grpc_have_the_same_spans(client: httpx.Client, collector: Collector, app: FastAPI) -> None:
    grpc = pytest.importorskip("grpc", reason="`make install-grpc` installs it")
    from app.api.rpc.messages import message

    request = message("ModelInferRequest")(model_name="tiny", raw_input_contents=[bytes(24)])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 6, 4, 1])
    trace = "2" * 32
    with grpc.insecure_channel(f"127.0.0.1:{app.state.rpc.port}") as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        ask(request.SerializeToString(), metadata=[("traceparent", f"00-{trace}-{PARENT}-01")], timeout=30)

    def found() -> list[Any]:
        return [each for each in collector.spans() if each.trace_id.hex() == trace]

    assert eventually(lambda: len(found()) == 1 + len(STAGES))
    [root] = [each for each in found() if each.parent_span_id.hex() == PARENT]
    assert root.name == "gRPC infer"
    assert {each.name for each in found()} == {root.name, *STAGES}


def test_a_collector_that_is_gone_costs_a_stop_little(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
        app = create_app(Settings(models=tmp_path))
    with serving(Settings(models=tmp_path), app) as client:
        assert client.post("/v1/classify", files={"image": GOOD}).status_code == 200


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin: otlp, console and none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"),
    ],
)
def test_what_cannot_be_exported_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exporter_of(variables)


def test_the_service_says_so_before_it_starts(models: Path) -> None:
    done = stopped("--models", str(models), "--port", "0", OTEL_TRACES_EXPORTER="zipkin")
    assert done.returncode == 2
    assert "graft: OTEL_TRACES_EXPORTER=zipkin" in done.stderr


@pytest.mark.parametrize(
    ("variables", "package"),
    [({}, ""), ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, ""),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "opentelemetry.sdk")],
)  # fmt: skip
def test_unasked_or_not_installed_nothing_is_imported(models: Path, variables: dict[str, str], package: str) -> None:
    code = f"""
import os, sys
os.environ |= {variables!r}
if {package!r}:
    sys.modules[{package!r}] = None
from app.main import create_app
from app.settings import Settings
app = create_app(Settings(models={str(models)!r}))
assert not app.state.fast_path._is_traced
print(sorted(name for name, module in sys.modules.items() if module and name.startswith("opentelemetry.sdk")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert ("is not installed" in done.stderr) == bool(package)
