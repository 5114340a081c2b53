"""Where the benchmarks keep what they make: environments of peers, bundles and results. Ignored by git."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".bench"
MODELS = HOME / "models"
RESULTS = HOME / "results"


class Skipped(Exception):
    """This cannot be measured here; the message says why."""


class Made(NamedTuple):
    """When, from which commit and on which machine something was measured; kept beside the numbers."""

    when: str  # ISO 8601, UTC
    commit: str
    machine: str


def made() -> Made:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return Made(datetime.now(UTC).isoformat(timespec="seconds"), commit.stdout.strip() or "unknown", machine())


def machine() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}"


def alone(module: str, *arguments: str, what: str, cores: set[int] | None = None) -> str:
    """What a module of these benchmarks prints in a process of its own, on these cores; `what` begins what is said of
    its failure."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        sentence = done.stderr.strip().splitlines() or ["it said nothing"]
        raise Skipped(f"{what}: {sentence[-1]}")
    return done.stdout


def environment(name: str) -> Path:
    """The Python of an environment of its own, made on first use from requirements/bench/<name>.txt.

    PYTHON_<NAME> in the environment is what it is made with, where this one does not suit the peer.
    """
    home, wanted = HOME / "environments" / name, ROOT / "requirements" / "bench" / f"{name}.txt"
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return python
    print(f"installing {name} into {home.relative_to(ROOT)}…", file=sys.stderr)
    try:
        if not python.exists():
            chosen = os.environ.get(f"PYTHON_{name.upper()}", sys.executable)
            subprocess.run([chosen, "-m", "venv", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)]
        done = subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped(f"{name}: no environment can be made: {error}") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise Skipped(f"{name} cannot be installed: {errors[-1]}")
    stamp.write_text(wanted.read_text())
    return python
