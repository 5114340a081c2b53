"""The end of a process that serves, from outside."""

import asyncio
import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from load import Answer, Load, post
from support import environment, running, save_tiny

from app.bundle.drawings import garment
from app.bundle.encode import png

IMAGE = png(garment("bag"))
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


def begin(connection: http.client.HTTPConnection, sent: int) -> None:
    """A request, whose body is to come."""
    connection.putrequest("POST", "/v1/classify")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(len(IMAGE)))
    connection.endheaders(IMAGE[:sent])
    time.sleep(0.2)


def test_a_process_that_is_to_end_is_not_ready_and_answers_what_comes_on_open_connections(models: Path) -> None:
    with (
        running(GRAFT_MODELS=str(models)) as (process, address, _),
        connected(address) as slow,
        connected(address) as idle,
    ):
        begin(slow, 50)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        idle.request("GET", "/readyz")
        answer = idle.getresponse()
        assert answer.status == 503
        assert answer.headers["Connection"] == "close"
        assert b"about to end" in answer.read()
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

    def hears(_: int, answer: Answer) -> None:
        statuses.add(answer.status)

    async def ends(process: subprocess.Popen[str], load: Load) -> None:
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        process.send_signal(signal.SIGTERM)
        await running

    with running(GRAFT_MODELS=str(models), GRAFT_WORKERS=workers, GRAFT_DRAIN_S="5") as (process, address, _):
        load = Load(address, [CLASSIFY], kept=kept, hears=hears)
        asyncio.run(ends(process, load))
        start = time.monotonic()
        assert process.wait(timeout=6) == 0
        print(f"{load.answered} answered, {load.refused} refused; ended {time.monotonic() - start:.2f} s later")
    assert load.lost == []
    assert load.refused == load.clients
    assert load.answered > load.clients
    assert statuses == {200}


def test_a_second_signal_ends_it_at_once(models: Path) -> None:
    with running(GRAFT_MODELS=str(models)) as (process, address, _), connected(address) as slow:
        begin(slow, 50)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None, "it waits for the request"
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - start < 1


def test_what_is_not_answered_in_time_does_not_keep_it(models: Path) -> None:
    settings = {"GRAFT_MODELS": str(models), "GRAFT_DRAIN_S": "1"}
    with running(**settings) as (process, address, _), connected(address) as slow:
        begin(slow, 50)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert 0.8 < time.monotonic() - start < 4


def test_a_thread_that_hangs_does_not_keep_it(models: Path) -> None:
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
    assert "not at rest 2 s after it was asked to end" in log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_where_models_come_and_go_there_need_be_none_at_the_start(tmp_path: Path, workers: str) -> None:
    settings = {"GRAFT_MODELS": str(tmp_path), "GRAFT_MODEL_CONTROL": "poll", "GRAFT_POLL_S": "0.1"}
    with running(ready=503, GRAFT_WORKERS=workers, **settings) as (process, address, _):
        save_tiny(tmp_path)
        end = time.monotonic() + 30
        while httpx.get(f"{address}/readyz").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=20) == 0
