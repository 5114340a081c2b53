"""Examples that a generator draws, learnt from beside the few that have a label: gain or loss against those alone."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.bars import Bar
from training import recipe
from training.compare import results as comparison
from training.compare.bench import compare
from training.measure.intervals import student

SEEDS = 3
_BUDGETS = (10, 100)  # labels per class


def measure(out: Path) -> Iterator[Bar]:
    compare(recipe.load("quick", []), out, ("scratch", "generated"), _BUDGETS, SEEDS)
    results = comparison.read(out)
    for budget in _BUDGETS:
        labels = next(result.labels for result in results if result.budget == budget)
        for arm in ("scratch", "generated"):
            mean, low, high = student([r.accuracy for r in results if (r.arm, r.budget) == (arm, budget)])
            print(f"        {budget} labels per class, {arm}: {mean:.4f} ± {(high - low) / 2:.4f}", flush=True)
        gain = comparison.difference(results, "generated", labels)
        assert gain is not None
        print(f"        the difference, seed by seed: {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})")
        yield Bar(f"{budget} labels per class, drawn examples' gain: the interval's lower end", gain.low, 0.0, 0.02)
