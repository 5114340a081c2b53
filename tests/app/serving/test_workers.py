"""Real processes: what a user sees of several workers, and how the supervisor handles workers that fail."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from support import environment, eventually, running, save_tiny, stopped

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.serving.workers import HANDED_OVER, MAX_FAILURES, Supervisor


def answers(address: str) -> bool:
    return httpx.post(f"{address}/v1/classify", files={"image": png(garment("bag"))}).status_code == 200


def holding_connections(address: str, among: list[psutil.Process]) -> set[int]:
    """The process ids that answer when many clients connect at once."""
    port = int(address.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(httpx.Client())
            assert client.get(f"{address}/healthz").status_code == 200
        return {
            process.pid
            for process in among
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED and connection.laddr[1] == port
        }


@contextmanager
def two_workers(models: Path) -> Iterator[tuple[subprocess.Popen[str], str, list[psutil.Process]]]:
    with running(GRAFT_MODELS=str(models), GRAFT_WORKERS="2") as (process, address, _):
        parent = psutil.Process(process.pid)
        assert eventually(lambda: len(holding_connections(address, parent.children())) == 2)
        workers = parent.children()
        try:
            yield process, address, workers
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            for worker in workers:  # none is left, or the test has failed for it
                with suppress(psutil.NoSuchProcess):
                    worker.kill()


@contextmanager
def half_a_request(address: str) -> Iterator[Callable[[], bytes]]:
    """Sends the first part of a request. The function it returns sends the rest and reads the answer."""
    body = png(garment("bag"))
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"Host: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\n" + head + body[:50])
        time.sleep(0.3)  # until a worker has accepted it

        def rest() -> bytes:
            connection.sendall(body[50:])
            return connection.recv(65536)

        yield rest


def test_both_workers_answer_and_the_address_is_printed_once(models: Path) -> None:
    with two_workers(models) as (process, address, workers):
        assert len(workers) == 2
        assert answers(address)
        memory = psutil.Process(process.pid).memory_info().rss / 1e6
        print(f"the parent holds {memory:.0f} MB")
        assert memory < 60
        process.terminate()
        printed, log = process.communicate(timeout=20)
    assert "answers at" not in printed, "printed a second time"
    assert "starting another" not in log
    assert process.returncode == 0


def test_a_killed_worker_is_replaced_while_the_other_answers(models: Path) -> None:
    with two_workers(models) as (process, address, workers):
        workers[0].kill()
        parent = psutil.Process(process.pid)

        def replaced() -> bool:
            assert answers(address)
            now = parent.children()
            return workers[0].pid not in {w.pid for w in now} and len(holding_connections(address, now)) == 2

        assert eventually(replaced)
        process.terminate()
        log = process.communicate(timeout=20)[1]
    assert f"a worker (process {workers[0].pid}) was ended by SIGKILL; starting another in 0.1 s" in log
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_workers_and_leaves_none(models: Path, number: signal.Signals) -> None:
    with two_workers(models) as (process, address, workers):
        with half_a_request(address) as rest:
            process.send_signal(number)
            assert eventually(lambda: sum(w.is_running() for w in workers) == 1), "the idle one ends at once"
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{address}/healthz")
            assert rest().startswith(b"HTTP/1.1 200")
        assert process.wait(timeout=20) == 0
        assert not any(worker.is_running() for worker in workers)


def test_a_second_signal_ends_all_at_once(models: Path) -> None:
    with two_workers(models) as (process, address, workers), half_a_request(address):
        process.terminate()
        assert eventually(lambda: sum(w.is_running() for w in workers) == 1)
        assert process.poll() is None, "it waits for the request"
        start = time.monotonic()
        process.terminate()
        assert process.wait(timeout=20) == 1, "a request was dropped"
        assert time.monotonic() - start < 2
        assert not any(worker.is_running() for worker in workers)


def test_workers_do_not_outlive_a_parent_that_was_killed(models: Path) -> None:
    with two_workers(models) as (process, _, workers):
        process.kill()
        assert eventually(lambda: not any(worker.is_running() for worker in workers))


def test_an_error_at_startup_is_printed_once(tmp_path: Path) -> None:
    done = stopped("--port", "0", "--workers", "4", GRAFT_MODELS=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("graft: GRAFT_MODELS=")
    assert done.stderr.count("\n") == 1


def test_refused_bundles_do_not_restart_workers(tmp_path: Path) -> None:
    """As with one worker: the service runs, and says what is wrong with them."""
    (save_tiny(tmp_path) / "encoder.onnx").write_bytes(b"damaged")
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--port", "0", "--workers", "2", "--models", str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        answer = httpx.get(f"{address}/readyz")
        assert answer.status_code == 503
        assert "SHA-256" in answer.text
    finally:
        process.terminate()
        log = process.communicate(timeout=20)[1]
    assert "starting another" not in log
    assert process.returncode == 0


def test_workers_run_this_package_from_any_working_directory(tmp_path: Path, models: Path) -> None:
    """`python -m app` would run an app/ in the working directory."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__main__.py").write_text("raise SystemExit('not this one')")
    command = tmp_path / "bin/graft-serve"
    command.parent.mkdir()
    command.write_text("import sys\nfrom app.__main__ import main\nsys.exit(main())\n")
    process = subprocess.Popen(
        [sys.executable, str(command), "--port", "0", "--workers", "2", "--models", str(models)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = process.stdout.readline()
    process.terminate()
    assert "answers at" in printed, process.communicate(timeout=20)[1]
    process.communicate(timeout=20)


# --- workers that fail, of one line each -----------------------------------------------------------------------


def supervise(
    tmp_path: Path, code: str, workers: int = 1, ready: Callable[[], None] = lambda: print("ready")
) -> tuple[int, int]:
    """(exit status, workers started). In `code`, `number` counts workers from 1, and `ready()` reports readiness."""
    starts = tmp_path / "starts"
    program = (
        "import os, socket, sys, time\n"
        f"channel = socket.socket(fileno=int(os.environ[{HANDED_OVER!r}].split(',')[1]))\n"
        f"with open({str(starts)!r}, 'a') as file: file.write('x')\n"
        f"number = os.path.getsize({str(starts)!r})\n"
        "ready = lambda: channel.send(b'+')\n"
        f"{code}\n"
    )
    before = psutil.Process().children()  # of other tests in this process
    with socket.create_server(("127.0.0.1", 0)) as listener:
        status = Supervisor([sys.executable, "-c", program], listener, workers, 1, ready).run()
    assert psutil.Process().children() == before
    return status, starts.stat().st_size


@pytest.mark.parametrize(
    ("code", "fate"),
    [("sys.exit(7)", "ended with status 7"), ("os.kill(os.getpid(), 9)", "ended by SIGKILL")],
)
def test_the_supervisor_gives_up_on_workers_that_die_before_they_are_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, fate: str
) -> None:
    assert supervise(tmp_path, code, workers=3) == (1, MAX_FAILURES)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("graft: giving up: 3 workers in a row were never ready")
    assert fate in printed.err


def test_the_supervisor_gives_up_on_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert Supervisor(["no-such-command"], listener, 2, 1, lambda: None).run() == 1
    assert "could not be started: No such file" in capsys.readouterr().err


def test_the_supervisor_gives_up_if_not_all_workers_ever_became_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example with memory for one of two: at startup a user is there to see it."""
    code = "if number > 1: sys.exit(7)\nready(); time.sleep(60)"
    assert supervise(tmp_path, code, workers=2) == (1, 1 + MAX_FAILURES)
    assert capsys.readouterr().out == "ready\n"


def test_a_serving_worker_continues_though_another_cannot_be_replaced(tmp_path: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
        "if number > 2: sys.exit(7)\nready()\ntime.sleep(60 if number == 1 else 1)"
    )
    starts = tmp_path / "starts"

    def stop() -> None:
        eventually(lambda: starts.exists() and starts.stat().st_size > 2 + MAX_FAILURES)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    status, started = supervise(tmp_path, code, workers=2)
    stopper.join()
    assert status == 0
    assert started > 2 + MAX_FAILURES


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready(); time.sleep(60)"
    assert supervise(tmp_path, code, ready=lambda: os.kill(os.getpid(), signal.SIGTERM)) == (1, 1)


def test_the_exit_status_says_that_a_worker_reported_a_dropped_request(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, lambda *_: os._exit({}))\nready(); time.sleep(60)"
    for status in (0, 1):
        (tmp_path / "starts").unlink(missing_ok=True)
        ready = partial(os.kill, os.getpid(), signal.SIGTERM)
        assert supervise(tmp_path, code.format(status), ready=ready) == (status, 1)


def test_the_exit_status_says_that_a_stop_cut_off_a_request_in_a_worker(models: Path) -> None:
    settings = {"GRAFT_MODELS": str(models), "GRAFT_WORKERS": "2", "GRAFT_DRAIN_S": "1"}
    with running(**settings) as (process, address, _), half_a_request(address):
        process.terminate()
        assert process.wait(timeout=20) == 1
