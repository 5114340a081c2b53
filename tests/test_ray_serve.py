"""deploy/ray as its page has it: `serve run`, in the environment that `make ray` makes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from support import assert_problem, save_tiny

from app.bundle import load
from app.bundle.drawings import golden_files

ROOT = Path(__file__).parents[1]
RAY = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-ray") / "bin/python"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GRAFT_", "COVERAGE"))}
PATIENCE_S = 300

pytestmark = pytest.mark.skipif(not RAY.exists(), reason="no environment with Ray: `make ray` makes it")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, of which the configuration names one."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        save_tiny(folder, seed=seed)
    return folder


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The configuration that ships, with two replicas of the tiny model at another port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"] |= {"models": str(models), "versions": ["tiny@1"], "replicas": [2, 2]}
    file = tmp_path_factory.mktemp("config") / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    with subprocess.Popen(
        [RAY, RAY.with_name("serve"), "run", "--app-dir", ".", file],
        cwd=ROOT,
        env={**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until = time.monotonic() + PATIENCE_S
            while not _ready(client):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(1)
            yield client
        process.send_signal(signal.SIGTERM)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_every_replica_serves_the_versions_that_are_named_and_no_other(client: httpx.Client, models: Path) -> None:
    """As the service would, through it all: the answers, and the errors in their shape."""
    bundle = load(models / "tiny/1")
    for file in golden_files()[:3]:
        expected = bundle.classify(bundle.preprocess(file)[None])[0]
        for _ in range(10):  # of both replicas
            answer = client.post("/v1/classify", files={"image": file})
            assert answer.status_code == 200
            assert answer.json()["model"] == {"name": "tiny", "version": 1, "digest": bundle.digest}
            assert answer.json()["results"][0]["label"] == expected.label
    assert_problem(client.post("/v1/classify", params={"model": "tiny@2"}, files={"image": file}), 404, "unknown-model")
    assert_problem(
        client.post("/v1/classify", content=b"x", headers={"Content-Type": "text/plain"}), 415, "unsupported-media-type"
    )
    assert {each["version"] for each in client.get("/v1/models").json()["models"]} == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versions": ["tiny@9"]}, "tiny@9: write NAME@VERSION, of what is in"),
        ({"versions": ["tiny"]}, "tiny: write NAME@VERSION, of what is in"),
        ({"settings": {"model_control": "poll"}}, "would change one replica of many: name versions"),
        ({"settings": {"max_bach": 3}}, "--max-bach=3: Extra inputs"),
        ({"version": "1"}, "Extra inputs are not permitted"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_any_replica_starts(
    change: dict[str, object], message: str, models: Path
) -> None:
    arguments = json.dumps({"models": str(models), "versions": ["tiny@1"], **change})
    code = "import sys; from deploy.ray.service import *; service(Arguments.model_validate_json(sys.argv[1]))"
    done = subprocess.run(
        [RAY, "-c", code, arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert message in done.stderr
