"""The health check that containers run."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import environment, running, save_tiny


def check(address: str, **settings: str) -> subprocess.CompletedProcess[str]:
    port = address.rpartition(":")[2]
    variables = environment(GRAFT_PORT=port, **settings)
    return subprocess.run(
        [sys.executable, "-m", "app.serving.healthcheck"], env=variables, capture_output=True, text=True
    )


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1"])
def test_it_succeeds_when_the_service_is_ready(tmp_path: Path, host: str) -> None:
    save_tiny(tmp_path)
    with running(GRAFT_MODELS=str(tmp_path)) as (_, address, _):
        done = check(address, GRAFT_HOST=host)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"status":"ok"}\n'


def test_it_fails_when_no_model_can_be_served(tmp_path: Path) -> None:
    with running(ready=503, GRAFT_MODELS=str(tmp_path), GRAFT_MODEL_CONTROL="poll") as (_, address, _):
        done = check(address)
    assert done.returncode == 1
    assert "no model can be served" in done.stdout


def test_it_fails_without_an_answer(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with running(GRAFT_MODELS=str(tmp_path)) as (_, address, _):
        pass
    done = check(address)
    assert done.returncode == 1
    assert "no answer" in done.stderr
