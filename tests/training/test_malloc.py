import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from training.malloc import keep_freed

if sys.argv[1] == "kept":
    keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        arrays = [np.ones(5_000_000, np.uint8) for _ in range(4)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc on Linux is told to keep what is freed")
def test_memory_that_was_freed_is_used_again_without_being_fetched_anew() -> None:
    kept, usual = (
        int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "usual")
    )
    assert kept < 500 < usual  # each round touches 20 MB, that is 4,900 pages
