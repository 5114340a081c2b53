"""The Open Inference Protocol over gRPC, over a real socket: its clients as they are, and what none of them sends."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from support import ROOT, eventually, metric_value, read_metrics, running, save_tiny, serving, stopped

from app.bundle import load
from app.bundle.drawings import golden_files
from app.main import create_app
from app.settings import Settings

grpc = pytest.importorskip("grpc", reason="`make install-grpc` installs it")

from grpc_health.v1 import health_pb2  # noqa: E402
from grpc_reflection.v1alpha import reflection_pb2  # noqa: E402

from app.api.rpc.messages import message  # noqa: E402

FILES = golden_files()[:3]
CLIENTS = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-clients") / "bin/python"
KEY = "a-key"
METADATA = (("authorization", f"Bearer {KEY}"),)
SERVICE = "/inference.GRPCInferenceService"
PIXELS = bytes(range(24))


class Served(NamedTuple):
    http: httpx.Client
    address: str
    channel: Any


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[Served]:
    app = create_app(settings)
    with serving(settings, app) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        address = f"127.0.0.1:{app.state.rpc.port}"
        with grpc.insecure_channel(address) as channel:
            yield Served(client, address, channel)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        save_tiny(models, seed=seed)
    limits = {"max_images": 8, "max_body_mb": 1, "body_timeout_s": 1}
    with served(Settings(models=models, grpc_port=0, model_control="explicit", api_keys=KEY, **limits)) as service:
        yield service


def call(service: Served, method: str, request: Any, metadata: Any = METADATA, **options: Any) -> Any:
    answer = "ModelInferResponse" if method == "ModelInfer" else f"{method}Response"
    ask = service.channel.unary_unary(
        f"{SERVICE}/{method}",
        request_serializer=lambda it: it if isinstance(it, bytes) else it.SerializeToString(),
        response_deserializer=message(answer).FromString,
    )
    return ask(request, metadata=metadata, timeout=options.pop("timeout", 30), **options)


def question(
    datatype: str = "UINT8", shape: tuple[int, ...] = (1, 6, 4, 1), raw: bytes | None = PIXELS, **contents: Any
) -> Any:
    request = message("ModelInferRequest")(model_name="tiny", model_version="2")
    tensor = request.inputs.add(name="image", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        request.raw_input_contents.append(raw)
    request.outputs.add(name="embedding")
    return request


def embedding(answer: Any) -> list[float]:
    return np.frombuffer(answer.raw_output_contents[0], "<f4").tolist()


def refusal(ask: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as refused:
        ask()
    return refused.value.code().name, refused.value.details()


@pytest.mark.parametrize(("client", "ways"), [("triton", 4), ("kserve", 1)])
def test_the_unmodified_clients_get_what_http_gives(service: Served, tmp_path: Path, client: str, ways: int) -> None:
    if not CLIENTS.exists():
        pytest.skip("the clients' versions clash with ours; `make clients` gives them an environment of their own")
    bundle = load(save_tiny(tmp_path))
    pixels = np.stack([bundle.preprocess(file) for file in FILES])
    np.savez(tmp_path / "given.npz", pixels=pixels, **{f"file{i}": np.frombuffer(f, "u1") for i, f in enumerate(FILES)})
    script = Path(__file__).with_name("grpc_clients.py")
    command = [CLIENTS, "-W", "ignore", script, client, service.address, KEY, tmp_path / "given.npz"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == ways
    for row, file in enumerate(FILES):
        [result] = service.http.post("/v1/encode", files={"image": file}).json()["results"]
        for way in found:
            assert np.array(way[row], np.float32).tolist() == np.array(result["embedding"], np.float32).tolist()


def test_contents_may_be_typed_or_raw(service: Served) -> None:
    expected = embedding(call(service, "ModelInfer", question()))
    assert embedding(call(service, "ModelInfer", question(raw=None, uint_contents=list(PIXELS)))) == expected
    file = FILES[0]
    packed = len(file).to_bytes(4, "little") + file
    by_file = embedding(call(service, "ModelInfer", question("BYTES", (1,), packed)))
    assert embedding(call(service, "ModelInfer", question("BYTES", (1,), None, bytes_contents=[file]))) == by_file
    answer = call(service, "ModelInfer", question())
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "2", "")
    [model] = [each for each in service.http.get("/v1/models").json()["models"] if each["version"] == 2]
    assert answer.parameters["digest"].string_param == model["digest"]


def changed(change: Callable[[Any], object], **options: Any) -> Any:
    request = question(**options)
    change(request)
    return request


def set_shared(tensor: Any) -> None:
    tensor.parameters["shared_memory_region"].string_param = "a"


BAD: list[tuple[Any, str, str]] = [
    (b"\xff\xff", "INVALID_ARGUMENT", "not a ModelInferRequest"),
    (changed(lambda it: it.ClearField("inputs"), raw=None), "INVALID_ARGUMENT", "at least one tensor"),
    (changed(lambda it: it.raw_input_contents.append(b"")), "INVALID_ARGUMENT", "2 entries for 1 inputs"),
    (question(raw=PIXELS[1:]), "INVALID_ARGUMENT", "23 bytes of data"),
    (question(uint_contents=[1]), "INVALID_ARGUMENT", "not both"),
    (question(raw=None), "INVALID_ARGUMENT", "image: data is 0 numbers"),
    (question(raw=None, int_contents=[1]), "INVALID_ARGUMENT", "UINT8 goes into uint_contents, not int_contents"),
    (question(raw=None, uint_contents=[256] * 24), "INVALID_ARGUMENT", "outside 0…255"),
    (question("FP16", raw=None), "INVALID_ARGUMENT", "send raw_input_contents"),
    (question("FP32", raw=PIXELS * 4), "INVALID_ARGUMENT", "UINT8, or BYTES with whole files, is expected"),
    (question(shape=(1, 4, 6, 1)), "INVALID_ARGUMENT", "[n, 6, 4, 1] is expected"),
    (question(shape=(-1, 6, 4, 1)), "INVALID_ARGUMENT", "whole numbers"),
    (question(shape=(9, 6, 4, 1), raw=PIXELS * 9), "INVALID_ARGUMENT", "at most 8"),
    (question("BYTES", (1,), b"\4\0\0\0none"), "INVALID_ARGUMENT", "begins with"),
    (question("BYTES", (1,), b"\xff\xff\xff\xff"), "INVALID_ARGUMENT", "runs past the end"),
    (changed(lambda it: it.outputs.add(name="x")), "INVALID_ARGUMENT", "has no 'x'"),
    (changed(lambda it: it.outputs.add(name="embedding")), "INVALID_ARGUMENT", "a name occurs twice"),
    (changed(lambda it: set_shared(it.inputs[0])), "INVALID_ARGUMENT", "shared memory"),
    (changed(lambda it: setattr(it.parameters["timeout"], "int64_param", -1)), "INVALID_ARGUMENT", "microseconds"),
    (changed(lambda it: setattr(it, "model_name", "other")), "NOT_FOUND", "there is no model 'other'"),
    (changed(lambda it: setattr(it, "model_version", "9")), "NOT_FOUND", "no version '9'"),
    (question(raw=bytes(1_000_001)), "RESOURCE_EXHAUSTED", "larger than max"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "code", "text"), BAD)
def test_what_is_wrong_is_said_with_the_protocols_code(service: Served, request_: Any, code: str, text: str) -> None:
    found = refusal(lambda: call(service, "ModelInfer", request_))
    assert found[0] == code, found
    assert text in found[1]
    assert "Traceback" not in found[1]


def test_other_refusals(service: Served) -> None:
    assert refusal(lambda: call(service, "ModelInfer", question(), ()))[0] == "UNAUTHENTICATED"
    assert refusal(lambda: call(service, "ModelInfer", question(), (("x-api-key", "no"),)))[0] == "UNAUTHENTICATED"
    assert call(service, "ModelInfer", question(), (("x-api-key", KEY),)).model_name == "tiny"
    assert call(service, "ServerLive", message("ServerLiveRequest")(), ()).live
    bomb = question(raw=bytes(900_000))
    assert refusal(lambda: call(service, "ModelInfer", bomb, compression=grpc.Compression.Gzip))[0] == "UNIMPLEMENTED"
    load_ = message("RepositoryModelLoadRequest")(model_name="tiny")
    load_.parameters["config"].string_param = "{}"
    assert refusal(lambda: call(service, "RepositoryModelLoad", load_)) == (
        "INVALID_ARGUMENT",
        "parameters: config: only version is supported",
    )


def test_late_and_abandoned_calls_leave_the_queue_empty(service: Served) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (500, 500)).save(picture, "BMP")  # which another process decodes
    late = question("BYTES", (1,), None, bytes_contents=[picture.getvalue()])
    late.parameters["timeout"].int64_param = 1000
    code, text = refusal(lambda: call(service, "ModelInfer", late))
    assert (code, text) == ("DEADLINE_EXCEEDED", "not answered within 1 ms; the work was dropped")
    for each in [call_later(service) for _ in range(20)]:
        each.cancel()

    def queued() -> float | None:
        return metric_value(read_metrics(service.http.get("/metrics").text), "graft_queue_images")

    assert eventually(lambda: queued() == 0)
    assert call(service, "ModelInfer", question()).model_name == "tiny"


def test_a_message_has_to_arrive(service: Served) -> None:
    def nothing() -> Iterator[bytes]:
        end.wait(20)
        yield b""

    end = threading.Event()
    ask = service.channel.stream_unary(f"{SERVICE}/ModelInfer")
    assert refusal(lambda: ask(nothing(), metadata=METADATA)) == (
        "DEADLINE_EXCEEDED",
        "the message did not arrive within 1 s",
    )
    end.set()


def call_later(service: Served, images: int = 8) -> Any:
    ask = service.channel.unary_unary(f"{SERVICE}/ModelInfer", request_serializer=lambda it: it.SerializeToString())
    return ask.future(question(shape=(images, 6, 4, 1), raw=PIXELS * images), metadata=METADATA)


def test_calls_are_counted_as_requests_over_http_are(service: Served) -> None:
    def count(**labels: object) -> float:
        samples = read_metrics(service.http.get("/metrics").text)
        return metric_value(samples, "graft_requests_total", operation="infer", **labels) or 0

    good, bad = {"model": "tiny", "version": 2, "status": 200}, {"model": "-", "version": "-", "status": 404}
    before = count(**good), count(**bad)
    call(service, "ModelInfer", question())
    refusal(lambda: call(service, "ModelInfer", changed(lambda it: setattr(it, "model_name", "other"))))
    assert eventually(lambda: (count(**good), count(**bad)) == (before[0] + 1, before[1] + 1))


def test_health_and_reflection_are_those_of_grpc(service: Served) -> None:
    check = service.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    for name in ("", SERVICE[1:]):
        assert check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
    ask = service.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE[1:]),
    ]
    names, file = list(ask(iter(requests)))
    assert SERVICE[1:] in [each.name for each in names.list_services_response.service]
    assert b"ModelInferRequest" in file.file_descriptor_response.file_descriptor_proto[0]


def test_a_full_queue_says_when_to_try_again(tmp_path: Path) -> None:
    save_tiny(tmp_path, seed=1)
    save_tiny(tmp_path, seed=2)
    with served(Settings(models=tmp_path, grpc_port=0, max_images=4, max_queue=4, max_bodies_mb=32)) as service:
        calls = [call_later(service, images=4) for _ in range(200)]
        codes = [each.code().name for each in calls if each.exception() is not None]
        assert set(codes) <= {"RESOURCE_EXHAUSTED"}
        for each in calls:
            if each.exception() is not None:
                assert dict(each.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
                assert "images are in flight" in each.details()
        assert len(codes) < len(calls)


def test_a_stop_answers_what_has_begun_and_ends_idle_streams(tmp_path: Path) -> None:
    save_tiny(tmp_path, seed=1)
    save_tiny(tmp_path, seed=2)
    with running(GRAFT_MODELS=str(tmp_path), GRAFT_GRPC_PORT="0") as (process, _, _):
        assert process.stderr is not None
        port = next(line.split(":")[-1] for line in process.stderr if "gRPC at" in line).strip()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            idle = threading.Event()

            def messages() -> Iterator[bytes]:
                yield question().SerializeToString()
                idle.wait(30)

            answers = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(messages())
            answer = message("ModelStreamInferResponse").FromString(next(answers))
            assert answer.infer_response.model_name == "tiny"
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert list(answers) == []
            assert process.wait(20) == 0
            assert time.monotonic() - began < 9, "the stop waited for an idle stream"
            idle.set()


def test_a_port_that_is_taken_and_a_missing_package_are_said(service: Served, models: Path) -> None:
    port = service.address.rpartition(":")[2]
    done = stopped("--models", str(models), "--port", "0", GRAFT_GRPC_PORT=port)
    assert done.returncode == 2
    assert f"GRAFT_GRPC_PORT={port}: cannot listen on 127.0.0.1: address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    done = stopped("--models", str(models), "--grpc-port", "0", "--workers", "2")
    assert (done.returncode, "name it" in done.stderr) == (2, True)
    code = "import sys; sys.modules['grpc'] = None; from app.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--models", str(models), "--port", "0", "--grpc-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "grpc is not installed: run `make install-grpc`" in done.stderr


def test_without_the_setting_nothing_of_grpc_is_imported(models: Path) -> None:
    code = f"""
import sys
from app.main import create_app
from app.settings import Settings
create_app(Settings(models={str(models)!r}))
print(sorted(name for name in sys.modules if name.startswith(("grpc", "google.protobuf", "app.api.rpc"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pages_example_prints_what_the_page_says(tmp_path: Path) -> None:
    if not CLIENTS.exists():
        pytest.skip("`make clients` installs the client")
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/grpc.md").read_text(), re.DOTALL)
    with served(Settings(models=ROOT / "models", grpc_port=0)) as service:
        script = code.replace("127.0.0.1:8001", service.address)
        done = subprocess.run([CLIENTS, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == code.rpartition("# ")[2].strip(), done.stderr
