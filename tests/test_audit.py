"""What `make audit` makes of what pip-audit says, which stands here as it does."""

import subprocess
from pathlib import Path

import pytest
from support import ROOT

FOUND = "Found 1 known vulnerability in 1 package\nName Version ID Fix Versions\n"
AWAY = (
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='vulnerabilities', port=443): Max retries exceeded"
)
UNKNOWN = "ERROR:pip_audit._cli:odd: Dependency not found on PyPI and could not be audited: odd (1.0)"


@pytest.mark.parametrize(
    ("output", "ends", "status", "message"),
    [
        ("No known vulnerabilities found", 0, 0, "serve.txt: no known vulnerability"),
        (FOUND, 1, 1, "serve.txt: has known vulnerabilities"),
        (AWAY, 1, 2, "serve.txt: NOT audited"),
        (UNKNOWN, 1, 2, "serve.txt: NOT audited"),
    ],
)
def test_only_what_was_asked_and_answered_is_clean(
    tmp_path: Path, output: str, ends: int, status: int, message: str
) -> None:
    answer = tmp_path / "told.txt"
    answer.write_text(output)
    audit = tmp_path / "pip-audit"
    audit.write_text(f"#!/bin/sh\ncat {answer} >&2\nexit {ends}\n")
    audit.chmod(0o755)
    done = subprocess.run(
        ["sh", "requirements/audit.sh", audit, "serve.txt"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert message in done.stdout
