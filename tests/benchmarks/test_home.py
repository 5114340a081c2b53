import os

import pytest

from benchmarks.bundles import SEED, bundle
from benchmarks.home import Skipped, alone


def test_what_runs_alone_runs_on_its_core_and_tells() -> None:
    core = min(os.sched_getaffinity(0))
    output = alone("benchmarks.sessions", str(bundle(SEED)), "neither", "0.05", what="it", cores={core})
    assert "per_second" in output


def test_what_fails_alone_is_skipped_with_its_last_words() -> None:
    with pytest.raises(Skipped, match="the thing: KeyError: 'wings'"):
        alone("benchmarks.sessions", str(bundle(SEED)), "wings", "1", what="the thing")
