"""Adaptation to a target without labels: DANN and MMD against the source's labels alone, over pairs of domains.

The arms of a pair have the same network, images, steps and seeds. `statistics` is what the other two begin with: the
source's labels alone, but each domain normalised by itself. Labels of the target are used by the test alone. What was
found lies in results.jsonl, and an interrupted measurement goes on from there.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.bars import Bar
from training import recipe
from training.data.imageset import ImageSet
from training.data.material import Material, gather
from training.learning.adapt import adapt, discrepancy
from training.learning.inference import accuracy_of, read
from training.learning.workshop import Workshop, open_workshop
from training.measure.intervals import Interval, student
from training.recipe import Recipe

SEEDS = range(3)
PAIRS = (
    ("mnist", "mnist-textured"),
    ("mnist", "digits"),
    ("fashion-mnist", "fashion-mnist-textured"),
)
BASELINE, STATISTICS = "source-only", "statistics"
ARMS = {
    BASELINE: ("dann", ["transfer.mode=source-only"]),
    STATISTICS: ("dann", ["transfer.adaptation=0"]),
    "dann": ("dann", []),
    "mmd": ("mmd", []),
}
_COMPARED = 1000  # images of either domain, of which the distance is taken


@dataclass(frozen=True)
class Found:
    """One arm, trained once."""

    source: str
    target: str
    arm: str
    seed: int
    accuracy: float  # on the target's test images
    at_home: float  # on the source's, with what is exported
    apart: float  # the squared discrepancy of the codes of test images of both

    def is_of(self, pair: tuple[str, str], arm: str, seed: int) -> bool:
        return ((self.source, self.target), self.arm, self.seed) == (pair, arm, seed)


def measure(out: Path) -> Iterator[Bar]:
    results = _before(out / "results.jsonl")
    for pair in PAIRS:
        for seed in SEEDS:
            left = [arm for arm in ARMS if not any(each.is_of(pair, arm, seed) for each in results)]
            material = gather(_recipe(left[0], pair, seed)) if left else None
            for arm in left:
                assert material is not None
                results.append(_trained(arm, pair, seed, material, out))
                with (out / "results.jsonl").open("a") as file:
                    file.write(json.dumps(asdict(results[-1])) + "\n")
        _report([each for each in results if (each.source, each.target) == pair], pair)
    first = [each for each in results if (each.source, each.target) == PAIRS[0]]
    for arm, bar, goal in (("dann", 15, 30), ("mmd", 8, 15)):
        yield Bar(f"MNIST → textured MNIST, points of {arm} over source only", _gain(first, arm).mean, bar, goal)


def _before(path: Path) -> list[Found]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [Found(**json.loads(line)) for line in lines if line.endswith("\n")]


def _recipe(arm: str, pair: tuple[str, str], seed: int) -> Recipe:
    name, changes = ARMS[arm]
    source, target = pair
    half = ["split.test=0.5"] if target == "digits" else []  # of 1,797; the others have a test part of their own
    return recipe.load(name, [f"source={source}", f"target={target}", f"seed={seed}", *half, *changes])


def _trained(arm: str, pair: tuple[str, str], seed: int, material: Material, out: Path) -> Found:
    chosen = _recipe(arm, pair, seed)
    workshop = open_workshop(chosen, material.spec.shape, out / "-".join((*pair, arm, str(seed))), untrained=False)
    head = adapt(workshop, material.source_train, material.source_validation, material.train, chosen.transfer)
    tensor = chosen.transfer.reads
    apart = discrepancy(*(_some(workshop, part, tensor, seed) for part in (material.source_test, material.test))).item()
    reached, at_home = (accuracy_of(workshop.net, head, tensor, part) for part in (material.test, material.source_test))
    return Found(*pair, arm, seed, reached, at_home, apart)


def _some(workshop: Workshop, data: ImageSet, tensor: str, seed: int) -> torch.Tensor:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:_COMPARED])
    return torch.from_numpy(read(workshop, data.take(chosen), tensor))


def _gain(results: Sequence[Found], arm: str, baseline: str = BASELINE) -> Interval:
    """Seed by seed, in points."""
    reached = {(each.arm, each.seed): 100 * each.accuracy for each in results}
    return student([reached[arm, seed] - reached[baseline, seed] for seed in SEEDS])


def _report(results: Sequence[Found], pair: tuple[str, str]) -> None:
    print(f"        {pair[0]} → {pair[1]}, {len(SEEDS)} seeds, mean and 95 % interval")
    for arm in ARMS:
        own = [each for each in results if each.arm == arm]
        found, home = student([each.accuracy for each in own]), np.mean([each.at_home for each in own])
        line = f"{arm}: {found.mean:.1%} ({found.low:.1%} to {found.high:.1%}), source {home:.1%}"
        line += f", codes apart {np.mean([each.apart for each in own]):.3f}"
        for baseline in (BASELINE, STATISTICS)[: list(ARMS).index(arm)]:
            gain = _gain(results, arm, baseline)
            line += f"; over {baseline} {gain.mean:+.1f} points ({gain.low:+.1f} to {gain.high:+.1f})"
            line += ", NEGATIVE TRANSFER" if gain.high < 0 else ", not shown" if gain.low <= 0 else ""
        print(f"        {line}", flush=True)
