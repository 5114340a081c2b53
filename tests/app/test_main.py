"""The service as users start it: a process, from the command line."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from support import ROOT, assert_problem, environment, running, stopped

import app
from app.bundle.session import compiled_in
from app.main import threads_per_worker
from app.settings import PREFIX, SECRETS, Settings


def test_it_starts_prints_its_address_answers_and_stops_with_success() -> None:
    with running() as (process, address, seconds):
        assert process.stdout is not None
        curl = process.stdout.readline().split()
        assert curl[:2] == ["curl", "-F"]
        answered = subprocess.run([*curl, "-sS"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert '"results"' in answered.stdout
        print(f"ready {seconds:.2f} s after its start")
        memory = psutil.Process(process.pid).memory_info().rss / 1e6
        print(f"{memory:.0f} MB resident")
        assert memory < 150
        assert httpx.get(f"{address}/docs").status_code == 200
    assert process.returncode == 0


def test_neither_torch_nor_training_is_imported(models: Path) -> None:
    """Not even when a bundle is loaded and used."""
    code = f"""
import sys, pathlib, app.__main__, app.serving.server, app.bundle, app.bundle.drawings as drawings
bundle = app.bundle.load(pathlib.Path({str(models / "tiny/1")!r}))
images = bundle.preprocess(drawings.golden_files()[0])[None]
assert bundle.classify(images) and bundle.anomaly(images)
print([module for module in ("torch", "training", "onnx", "cv2") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_success(number: signal.Signals) -> None:
    with running() as (process, _, _):
        process.send_signal(number)
        assert process.wait(timeout=20) == 0


def test_settings_are_used(models: Path) -> None:
    with running(GRAFT_MODELS=str(models), GRAFT_MAX_IMAGES="1", GRAFT_MAX_BODY_MB="1") as (_, address, _):
        files = [("a", b"x"), ("b", b"y")]
        assert_problem(httpx.post(f"{address}/v1/classify", files=files), 413, "too-many-images")
        assert httpx.get(f"{address}/v1/models").json()["models"][0]["name"] == "tiny"


def test_a_path_prefix_is_in_the_openapi_description(models: Path) -> None:
    with running(GRAFT_MODELS=str(models), GRAFT_ROOT_PATH="/graft") as (_, address, _):
        assert httpx.get(f"{address}/openapi.json").json()["servers"] == [{"url": "/graft"}]


@pytest.mark.parametrize("flag", ["--api-keys", "--metrics-key"])
def test_a_key_on_the_command_line_is_refused_and_not_repeated(models: Path, flag: str) -> None:
    """`ps` would show it. argparse must not take --api-keys as short for --api-keys-file, which is allowed."""
    for arguments in ((flag, "hunter2"), (f"{flag}=hunter2",), (flag,), ("--workers", "2", flag, "hunter2")):
        done = stopped(*arguments, "--models", str(models), "--port", "0")
        assert done.returncode == 2, arguments
        assert "hunter2" not in done.stdout + done.stderr
        assert done.stderr.startswith(f"graft: {flag}: ")
        assert done.stderr.count("\n") == 1
        assert f"set GRAFT_{flag[2:].upper().replace('-', '_')}" in done.stderr
        assert ("GRAFT_API_KEYS_FILE" in done.stderr) == (flag == "--api-keys")


def test_errors_at_startup_are_one_sentence(tmp_path: Path, models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (stopped("--port", port), "in use", "PORT"),
            (stopped(GRAFT_PORT="many"), "GRAFT_PORT=many", "integer"),
            (stopped(GRAFT_MODELS=str(tmp_path / "none")), "no such folder", "make train"),
            (stopped(GRAFT_MODELS=str(tmp_path)), "no <name>/<version>/", "make train"),
            (stopped(GRAFT_MODELS=str(models), GRAFT_DEFAULT_MODEL="x"), "GRAFT_DEFAULT_MODEL=x", "tiny"),
            (stopped("--provider", "gpu"), "GRAFT_PROVIDER=gpu", "CPUExecutionProvider"),
            (stopped("--host", "a..b"), "cannot listen on a..b", "HOST"),
            (stopped("--models", "x" * 3000), "no such folder", "make train"),
            (stopped("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid", "HOST"),
        ]
    for done, problem, fix in cases:
        assert done.returncode == 2
        assert done.stderr.startswith("graft: ")
        assert done.stderr.count("\n") == 1
        assert problem in done.stderr
        assert fix in done.stderr


@pytest.mark.skipif("CUDAExecutionProvider" in compiled_in(), reason="this onnxruntime may have a GPU")
def test_without_a_gpu_require_gpu_stops_the_start_and_prefer_gpu_does_not(models: Path) -> None:
    done = stopped(GRAFT_PROVIDER="require-gpu", GRAFT_MODELS=str(models))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"graft: GRAFT_PROVIDER=require-gpu: .*CUDAEx.*CPUEx.*`make install-gpu`.*\n", done.stderr)
    with running(GRAFT_PROVIDER="prefer-gpu", GRAFT_MODELS=str(models)) as (process, address, _):
        assert httpx.get(f"{address}/v1/models/tiny").json()["provider"] == "CPUExecutionProvider"
        process.terminate()
        assert "GRAFT_PROVIDER=prefer-gpu: the CPU runs the graphs" in process.communicate(timeout=20)[1]


def test_workers_share_the_cpus() -> None:
    assert [threads_per_worker(Settings(workers=workers), cpus=8) for workers in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert threads_per_worker(Settings(workers=2, threads=7), cpus=8) == 7


def test_help_names_every_setting() -> None:
    text = stopped("--help").stdout
    for name in Settings.model_fields:
        flag, variable = f"--{name.replace('_', '-')} ", f"{PREFIX}{name.upper()}"
        assert (flag in text) == (name not in SECRETS), name
        assert variable in text or name not in SECRETS, name
    assert stopped("--version").stdout == f"graft {app.__version__}\n"
