"""A client of a service that runs the repository's code, in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.home import ROOT


@contextmanager
def serving(**settings: str) -> Iterator[httpx.Client]:
    """`settings` as in its environment, GRAFT_…; it is ended afterwards."""
    environment = {**os.environ, "GRAFT_LOG_REQUESTS": "none", **settings}
    command = [sys.executable, "-m", "app", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address is not None, "the service did not start"
        with httpx.Client(base_url=address[0].rstrip("/"), timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait()
