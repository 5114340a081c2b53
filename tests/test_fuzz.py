"""schemathesis takes a description at its word: hundreds of requests made from it alone."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment, running, save_tiny

CHECKS = (  # that a value which the description forbids is refused, tests/test_bad_inputs.py has with its reasons
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
FUZZER = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
PROTOCOL = Path(__file__).with_name("open_inference.yaml")


def fuzzed(folder: Path, *arguments: str, **settings: str) -> str:
    """What it tells of a service that withstood it. Every deadline is long: a short one asks for 504."""
    models = folder / "models"
    save_tiny(models, "tiny", variational=True)
    assert FUZZER is not None
    with running(600, GRAFT_MODELS=str(models), GRAFT_LOG_REQUESTS="none", **settings) as (_, address, _):
        done = subprocess.run(
            [
                *(FUZZER, "run", *(each.format(address) for each in arguments), "-H", "X-Timeout-Ms: 30000"),
                *("--checks", ",".join(CHECKS), "--seed", "7", "--no-color"),
            ],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(("key", "examples"), [(None, "7"), ("secret", "1")])
def test_the_service_is_as_its_description_says(tmp_path: Path, key: str | None, examples: str) -> None:
    """Twice: all is open, or all takes a key, which changes what is described and not what is answered."""
    keyed = {"GRAFT_API_KEYS": key} if key else {}
    headers = ["-H", f"X-API-Key: {key}"] if key else []
    output = fuzzed(tmp_path, "{}/openapi.json", *headers, "--max-examples", examples, **keyed)
    described = re.search(r"Selected: (\d+)/\1\b", output)
    assert described, output
    assert f"Tested: {described[1]}" in output


def test_the_service_is_as_the_open_inference_protocol_says(tmp_path: Path) -> None:
    assert "Tested: 10" in fuzzed(tmp_path, str(PROTOCOL), "--url", "{}", "--max-examples", "20")
