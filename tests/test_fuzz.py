"""schemathesis takes the published OpenAPI description at its word: hundreds of requests made from it alone."""

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


@pytest.mark.parametrize("key", [None, "secret"])
def test_the_service_is_as_its_description_says(tmp_path: Path, key: str | None) -> None:
    """Twice: all is open, or all takes a key. Every deadline is long, for 504 is what a short one asks for."""
    models = tmp_path / "models"
    save_tiny(models, "tiny", variational=True)
    keyed = {"GRAFT_API_KEYS": key} if key else {}
    headers = ["-H", "X-Timeout-Ms: 30000", *(["-H", f"X-API-Key: {key}"] if key else [])]
    assert FUZZER is not None
    with running(GRAFT_MODELS=str(models), GRAFT_LOG_REQUESTS="none", **keyed) as (_, address, _):
        fuzzed = subprocess.run(
            [
                *(FUZZER, "run", f"{address}/openapi.json", *headers, "--checks", ",".join(CHECKS)),
                *("--max-examples", "10", "--seed", "7", "--no-color"),
            ],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert fuzzed.returncode == 0, fuzzed.stdout[-6000:] + fuzzed.stderr[-2000:]
    assert "Tested: 15" in fuzzed.stdout
