"""What onnxruntime alone makes of a model's classifier graphs on one core, batch by batch: no server, no decoding.

python -m benchmarks.raw NAME SECONDS       # prints {"<batch>": images per second}
"""

import json
import sys
import time

import numpy as np

from benchmarks.bundles import NETWORKS, bundle
from benchmarks.home import alone
from benchmarks.servers.graph import Graphs

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def rates(name: str, seconds: float, core: int) -> dict[int, float]:
    """In a process of its own, pinned."""
    output = alone("benchmarks.raw", name, str(seconds), what=f"onnxruntime alone with {name}", cores={core})
    return {int(batch): rate for batch, rate in json.loads(output).items()}


def _rate(graphs: Graphs, images: np.ndarray, seconds: float) -> float:
    graphs.logits(images)
    start, runs = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not runs:
        graphs.logits(images)
        runs += 1
    return runs * len(images) / spent


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    graphs = Graphs(bundle(name))
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), *graphs.shape), dtype=np.uint8)
    batches = [batch for batch in BATCHES if name not in NETWORKS or batch <= 16]
    print(json.dumps({batch: _rate(graphs, images[:batch], seconds) for batch in batches}))


if __name__ == "__main__":
    main()
