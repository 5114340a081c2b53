import subprocess
import sys

from support import ROOT


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    command = [sys.executable, "-m", "benchmarks.methods", "--only", "adapt,magic"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "magic is none of adapt" in done.stderr
