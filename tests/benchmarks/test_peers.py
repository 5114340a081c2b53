import os

import pytest

from benchmarks import load
from benchmarks.home import Skipped
from benchmarks.peers import SERVERS, Server, family, running
from benchmarks.workloads import WORKLOADS

NAMED = {server.name: server for server in SERVERS}
PNG = WORKLOADS[0]
CORE = min(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", ["floor", "naive", "graft"])
def test_a_server_starts_pinned_answers_rightly_and_is_gone_afterwards(name: str) -> None:
    requests = PNG.requests(name)
    with running(NAMED[name], PNG, requests[0], CORE) as started:
        assert os.sched_getaffinity(started.process.pid) == {CORE}
        for index in (0, 1):
            status, answer = load.answered(started.port, requests[index])
            assert status == 200
            assert PNG.wrong(name, PNG.files[index], answer) is None
        assert 20 < started.memory_mb() < 1000
        assert started.cpu_s() > 0
        assert started.startup_s > 0
        members = family(started.process.pid)
    assert all(not os.path.exists(f"/proc/{pid}") for pid in members)


def test_a_server_that_ends_at_once_is_skipped_with_its_last_words() -> None:
    broken = Server("broken", "Broken", lambda port, folder: ["sh", "-c", "echo cannot do it; exit 3"])
    with (
        pytest.raises(Skipped, match="Broken: it ended with status 3: cannot do it"),
        running(broken, PNG, PNG.requests("floor")[0], CORE),
    ):
        pass
