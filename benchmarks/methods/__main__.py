"""The ways to transfer beside fine-tuning, each measured and printed beside its bar.

    make methods            # all of them; or: ONLY=adapt make methods

A module here measures one of them. Named data sets lie in GRAFT_DATA, `neu-surface` beside them. Nothing is chosen by a
test set.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bars import Bar
from benchmarks.methods import adapt, augment, labelling, left_out, shots, vae, variants
from training import malloc

METHODS: dict[str, Callable[[Path], Iterator[Bar]]] = {  # each gets a folder of its own to keep its runs in
    "adapt": adapt.measure,
    "shots": shots.measure,
    "left-out": left_out.measure,
    "vae": vae.measure,
    "augment": augment.measure,
    "variants": variants.measure,
    "labelling": labelling.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(METHODS), help="some of these, joined by commas (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="where runs are kept")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := [name for name in chosen if name not in METHODS]:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(METHODS)}")
    malloc.keep_freed()
    for name in chosen:
        start = time.monotonic()
        for bar in METHODS[name](given.out / name):
            print(bar.line(), flush=True)
        print(f"        ({name}: {time.monotonic() - start:,.0f} s)", flush=True)


if __name__ == "__main__":
    main()
