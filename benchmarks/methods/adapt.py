"""Adaptation to a domain without labels: what a network that has seen MNIST's labels alone makes of textured digits."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.bars import Bar
from training import data, recipe
from training.material import gather
from training.transfer import accuracy_of, finetune, workshop

SEEDS = 3


def measure(out: Path) -> Iterator[Bar]:
    for seed in range(SEEDS):
        chosen = recipe.load("quick", ["target=mnist", f"seed={seed}", "transfer.mode=scratch", "transfer.epochs=2"])
        material = gather(chosen)
        shop = workshop(chosen, material.spec.shape, out / f"source-{seed}", untrained=True)
        blocks = list(shop.net.blocks())
        head = finetune(shop, material.train, material.validation, chosen.transfer, blocks, reconstruct=0.0)
        strange = data.load("mnist-textured", "test", material.spec)
        reached = accuracy_of(shop.net, head, chosen.transfer.reads, strange)
        yield Bar(f"MNIST alone on textured MNIST, seed {seed}: above guessing", reached, 0.1, 0.5)
