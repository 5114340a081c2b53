"""What decoding costs at the worst: bytes a pixel, seconds a megapixel, and how long Python's lock is held.

    PYTHONPATH=tests python -m benchmarks.decoding [--side 4000] [PART OF A NAME …]

Each file through app.bundle, for a model of 224 × 224 RGB, in a process that does nothing else. The table in
app/bundle/header.py holds what this prints, rounded up; tests/app/bundle/test_header.py holds it to that.
"""

import argparse
import json
import os
import sys
import threading
import time

from hostile import DRAWN

from app.bundle.header import read_header
from app.bundle.preprocess import preprocess
from training.recipe import Input

SPEC = Input(height=224, width=224, channels=3, background="white").spec()
_LOOK_S = 0.0002


def peak() -> int:
    """Bytes in memory at most, since this was last asked."""
    with open("/proc/self/status") as status:
        found = next(line for line in status if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    return int(found.split()[1]) << 10


def measured(name: str, side: int) -> dict[str, float | str]:
    preprocess(DRAWN[name](32, 32), SPEC)  # whatever is imported only now
    data = DRAWN[name](side, side)
    header = read_header(data)
    peak()
    before, cpu = peak(), time.process_time()
    preprocess(data, SPEC)
    seconds, took = time.process_time() - cpu, peak() - before
    return {
        "name": name,
        "bytes": len(data),
        "pixel_bytes": took / header.pixels,
        "reserved": header.peak_bytes(SPEC) / header.pixels,
        "megapixel_s": seconds / header.pixels * 1e6,
        "expected_s": header.seconds(SPEC) / header.pixels * 1e6,
        "held_s": held(data),
    }


def held(data: bytes) -> float:
    """Seconds for which another thread did not get a turn, at the longest."""
    longest, over = 0.0, threading.Event()

    def look() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(_LOOK_S)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    watch = threading.Thread(target=look)
    watch.start()
    preprocess(data, SPEC)
    over.set()
    watch.join()
    return longest


def main() -> None:
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # what is freed goes back at once, or it would hide the next peak
        own = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        command = [sys.executable, "-m", "benchmarks.decoding", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | own)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    if not given.json:
        print("| file | its bytes | bytes a pixel | reserved | s a megapixel | expected | lock held at once, s |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in DRAWN:
        if given.names and not any(part in name for part in given.names):
            continue
        found = measured(name, given.side)
        if given.json:
            print(json.dumps(found), flush=True)
            continue
        print(
            f"| {name} | {found['bytes']:,} | {found['pixel_bytes']:.1f} | {found['reserved']:.1f} | "
            f"{found['megapixel_s']:.3f} | {found['expected_s']:.3f} | {found['held_s']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
