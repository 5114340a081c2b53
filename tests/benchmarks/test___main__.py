import subprocess
import sys

from support import ROOT

from benchmarks.peers import SERVERS
from benchmarks.workloads import WORKLOADS


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_help_names_every_workload_and_server() -> None:
    output = run("--help").stdout
    for each in (*WORKLOADS, *SERVERS):
        assert f"\n  {each.name} " in output


def test_what_there_is_not_is_refused_with_what_there_is() -> None:
    done = run("--only", "png,nothing")
    assert done.returncode != 0
    assert "--only has no 'nothing'; there are: png, png-raw" in done.stderr
