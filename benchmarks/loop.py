"""Training throughput: our loop against the plain one, same network, same images, same run.

    make bench-training

The peer is what a notebook has: a DataLoader over a dataset of uint8 images that scales each, fp32, channels first.
Ours is training.learning.pretrain. All arms on all cores, each in a process of its own, interleaved, the
median of the repetitions.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from training import malloc
from training.data.imageset import ImageSet
from training.learning.checkpoint import Checkpoints
from training.learning.journal import Journal
from training.learning.pretrain import pretrain
from training.learning.workshop import Workshop, computed_in
from training.networks.autoencoder import build
from training.recipe import Network, Objective, Stage

IMAGES, BATCH, REPETITIONS = 60_000, 128, 3  # an epoch of MNIST
SHAPE = (28, 28, 1)


class Plain(Dataset[torch.Tensor]):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1).float() / 255


def plain(images: np.ndarray, workers: int) -> float:
    """Images per second of one epoch."""
    net = build(Network(), SHAPE)
    optimiser = torch.optim.Adam([*net.encoder.parameters(), *net.decoder.parameters()], lr=1e-3)
    loader = DataLoader(Plain(images), batch_size=BATCH, shuffle=True, num_workers=workers)
    start = time.perf_counter()
    for batch in loader:
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(net.decoder(net.encode(batch).code), batch).backward()
        optimiser.step()
    return len(images) / (time.perf_counter() - start)


def ours(images: np.ndarray, precision: str) -> float:
    malloc.keep_freed()  # as graft-train does
    net = build(Network(), SHAPE)
    for part in (net.encoder, net.decoder):
        part.to(memory_format=torch.channels_last)
    data, few = (ImageSet(part, np.array([], np.int64), ()) for part in (images, images[:1]))
    with tempfile.TemporaryDirectory() as folder:
        journal, checkpoints = Journal(Path(folder) / "metrics.jsonl"), Checkpoints(Path(folder))
        workshop = Workshop(net, Objective(), journal, checkpoints, torch.device("cpu"), precision)
        start = time.perf_counter()
        pretrain(workshop, data, few, Stage(epochs=1, batch=BATCH))
        return len(images) / (time.perf_counter() - start)


ARMS: dict[str, Callable[[np.ndarray], float]] = {
    "plain, DataLoader, fp32": lambda images: plain(images, 0),
    "plain, DataLoader with 2 workers, fp32": lambda images: plain(images, 2),
    "ours, fp32": lambda images: ours(images, "fp32"),
    "ours, bf16": lambda images: ours(images, "bf16"),
}


def rate(name: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loop", name], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    if len(sys.argv) == 2:
        print(ARMS[sys.argv[1]](np.random.default_rng(0).integers(0, 256, (IMAGES, *SHAPE), dtype=np.uint8)))
        return
    names = list(ARMS)
    if computed_in("bf16", torch.device("cpu")) != "bf16":
        names.remove("ours, bf16")
        print("this CPU has no bf16 of its own: fp32 alone is measured, as training here would run")
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(REPETITIONS):
        for name in names:
            rates[name].append(rate(name))
            print(f"{name}: {rates[name][-1]:,.0f} images/s", file=sys.stderr)
    best_plain = max(statistics.median(rates[name]) for name in names if name.startswith("plain"))
    print("| loop | images/s | × the better plain one |\n| --- | --- | --- |")
    for name, measured in rates.items():
        print(f"| {name} | {statistics.median(measured):,.0f} | {statistics.median(measured) / best_plain:.2f} |")


if __name__ == "__main__":
    main()
