"""How a serving process stops, seen from outside."""

import asyncio
import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from load import Answer, Load, post
from onnx import TensorProto, helper
from support import environment, onnx_file, running, save_tiny, tiny

from app.bundle.drawings import garment
from app.bundle.encode import png, png_of
from app.bundle.store import save

IMAGE = png(garment("bag"))
SIDE = 200  # a product of two matrices of this size takes a tenth of a millisecond
CLASSIFY = post("/v1/classify", IMAGE, "image/png")


@contextmanager
def connected(address: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
        yield connection
    finally:
        connection.close()


def send_head(connection: http.client.HTTPConnection, sent: int) -> None:
    """Sends the head of a request, and the first `sent` bytes of its body."""
    connection.putrequest("POST", "/v1/classify")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(len(IMAGE)))
    connection.endheaders(IMAGE[:sent])
    time.sleep(0.2)


def test_a_stopping_process_is_not_ready_and_answers_requests_on_open_connections(models: Path) -> None:
    with (
        running(GRAFT_MODELS=str(models)) as (process, address, _),
        connected(address) as slow,
        connected(address) as idle,
    ):
        send_head(slow, 50)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        idle.request("GET", "/readyz")
        answer = idle.getresponse()
        assert answer.status == 503
        assert answer.headers["Connection"] == "close"
        assert b"shutting down" in answer.read()
        with pytest.raises(ConnectionRefusedError), connected(address):
            pass
        slow.send(IMAGE[50:])
        answer = slow.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert process.wait(timeout=5) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("kept", [True, False])
def test_under_load_every_request_that_was_accepted_is_answered(models: Path, workers: str, kept: bool) -> None:
    statuses = set()

    def on_answer(_: int, answer: Answer) -> None:
        statuses.add(answer.status)

    async def ends(process: subprocess.Popen[str], load: Load) -> None:
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        process.send_signal(signal.SIGTERM)
        await running

    with running(GRAFT_MODELS=str(models), GRAFT_WORKERS=workers, GRAFT_DRAIN_S="5") as (process, address, _):
        load = Load(address, [CLASSIFY], kept=kept, on_answer=on_answer)
        asyncio.run(ends(process, load))
        start = time.monotonic()
        assert process.wait(timeout=6) == 0
        print(f"{load.answered} answered, {load.refused} refused; ended {time.monotonic() - start:.2f} s later")
    assert load.lost == []
    assert load.refused == load.clients
    assert load.answered > load.clients
    assert statuses == {200}


def test_a_second_signal_ends_the_process_at_once(models: Path) -> None:
    with running(GRAFT_MODELS=str(models)) as (process, address, _), connected(address) as slow:
        send_head(slow, 50)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None, "it did not wait for the request"
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 1, "a request was dropped"
        assert time.monotonic() - start < 1


def test_a_second_signal_that_drops_nothing_is_a_success(models: Path) -> None:
    with running(GRAFT_MODELS=str(models)) as (process, address, _), connected(address):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # it waits for requests on idle connections
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_an_unfinished_request_does_not_delay_the_exit_beyond_the_drain(models: Path) -> None:
    settings = {"GRAFT_MODELS": str(models), "GRAFT_DRAIN_S": "1"}
    with running(**settings) as (process, address, _), connected(address) as slow:
        send_head(slow, 50)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 1
        assert 0.8 < time.monotonic() - start < 4
        assert process.stderr is not None
        assert "requests dropped because they were not answered within 1 s: 1" in process.stderr.read()


def save_slow_on_white(models: Path) -> None:
    """The tiny bundle, slow enough to run in a thread; a white image takes it half a minute."""
    fields, files = tiny()
    square = helper.make_tensor_value_info("square", TensorProto.FLOAT, [SIDE, SIDE])
    body = helper.make_graph(
        [helper.make_node("MatMul", ["square", "turn"], ["turned"]), helper.make_node("Identity", ["on"], ["still"])],
        "once",
        [
            helper.make_tensor_value_info("turns", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            square,
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("turned", TensorProto.FLOAT, [SIDE, SIDE]),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["float"], ["least"], keepdims=0),
        helper.make_node("Div", ["least", "full"], ["white"]),  # 1 for white, less otherwise
        helper.make_node("Floor", ["white"], ["whole"]),
        helper.make_node("Mul", ["whole", "often"], ["more"]),
        helper.make_node("Add", ["more", "at_least"], ["product"]),
        helper.make_node("Cast", ["product"], ["times"], to=TensorProto.INT64),
        helper.make_node("Loop", ["times", "", "turn"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "into"], ["points"]),
        helper.make_node("Add", ["points", "zero"], ["embedding"]),
    ]
    encoder = fields["graphs"].encoder
    weights = {
        "full": np.float32(255),
        "often": np.float32(3e5),
        "at_least": np.float32(100),
        "nothing": np.float32(0),
        "turn": np.eye(SIDE, dtype=np.float32),
        "into": np.ones((int(np.prod(encoder.input.shape[1:])), encoder.outputs[0].shape[1]), np.float32),
    }
    save(models, "slow", fields, files | {"encoder.onnx": onnx_file(nodes, encoder.input, encoder.outputs[0], weights)})


def test_a_graph_that_outlasts_the_drain_is_cut_off_and_its_request_is_reported_as_dropped(tmp_path: Path) -> None:
    save_slow_on_white(tmp_path)
    white = png_of(np.full((6, 4, 1), 255, np.uint8))
    whole = post("/v1/classify", white, "image/png")
    with running(GRAFT_MODELS=str(tmp_path), GRAFT_DRAIN_S="1") as (process, address, _):
        quick = httpx.post(f"{address}/v1/classify", content=IMAGE, headers={"Content-Type": "image/png"})
        assert quick.status_code == 200
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(whole)
            time.sleep(0.5)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b"", "the request was answered, so the model was not slow"
        assert process.wait(timeout=20) == 1
        assert 0.8 < time.monotonic() - start < 4
        assert process.stderr is not None
        log = process.stderr.read()
    [line] = [line for line in log.splitlines() if "/v1/classify" in line and "499" in line]
    assert line


def test_a_thread_that_hangs_does_not_keep_the_process_alive(models: Path) -> None:
    code = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "from app.__main__ import main\n"
        f"main(['--port', '0', '--models', {str(models)!r}, '--drain-s', '1'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "answers at" in process.stdout.readline()
        process.terminate()
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
    assert "still running 2 s after the stop was requested" in log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_with_model_control_the_models_folder_may_be_empty_at_startup(tmp_path: Path, workers: str) -> None:
    settings = {"GRAFT_MODELS": str(tmp_path), "GRAFT_MODEL_CONTROL": "poll", "GRAFT_POLL_S": "0.1"}
    with running(ready=503, GRAFT_WORKERS=workers, **settings) as (process, address, _):
        save_tiny(tmp_path)
        end = time.monotonic() + 30
        while httpx.get(f"{address}/readyz").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=20) == 0
