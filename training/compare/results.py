"""The results of a comparison, and what they say."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.compare.arms import BASELINE, TRANSFERS
from training.recipe import Recipe

NUMBERS_FILE = "comparison.json"
# Student's t at 97.5 %, by degrees of freedom; it hardly falls beyond the last.
_T = (
    *(math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Result:
    """One arm at one budget and seed."""

    arm: str
    budget: int | None  # labels per class; None is all
    labels: int  # in all
    seed: int
    accuracy: float

    def is_of(self, arm: str, budget: int | None, seed: int) -> bool:
        return (self.arm, self.budget, self.seed) == (arm, budget, seed)


@dataclass(frozen=True)
class Comparison:
    """All arms of one recipe."""

    recipe: Recipe
    test_images: int
    results: Sequence[Result]


class Interval(NamedTuple):
    """A mean over seeds, and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """Student's. One value has no interval: it is infinitely wide."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    t = _T[min(count - 1, len(_T) - 1)]
    half = t * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def difference(results: Sequence[Result], arm: str, labels: int, baseline: str = BASELINE) -> Interval | None:
    """Arm less baseline, paired by seed: both had the same labels. None where either is missing."""
    by_seed = [
        {r.seed: r.accuracy for r in results if r.arm == each and r.labels == labels} for each in (arm, baseline)
    ]
    both = sorted(set(by_seed[0]) & set(by_seed[1]))
    return interval([by_seed[0][seed] - by_seed[1][seed] for seed in both]) if both and arm != baseline else None


def words(results: Sequence[Result], recipe: Recipe) -> list[str]:
    """Sentences: where transfer helped, where it hurt, and which baselines it does not beat."""
    sentences = []
    for arm in TRANSFERS:
        verdicts: dict[str, list[str]] = {"helps": [], "hurts": [], "makes no measurable difference": []}
        for labels in budgets(results):
            gain = difference(results, arm, labels)
            if gain is None:
                continue
            verdict = "helps" if gain.low > 0 else "hurts" if gain.high < 0 else "makes no measurable difference"
            verdicts[verdict].append(f"{labels:,} ({100 * gain.mean:+.1f} points)")
        for verdict, where in verdicts.items():
            if where:
                prefix = "NEGATIVE TRANSFER: " if verdict == "hurts" else ""
                sentences.append(
                    f"{prefix}Against training from scratch, {_in_words(arm, recipe)} {verdict} "
                    f"with {_enumerated(where)} labels."
                )
    for arm, other in (("source", "random"), ("source", "pixels"), ("source", "target")):
        where = [
            f"{labels:,}"
            for labels in budgets(results)
            if (gain := difference(results, arm, labels, other)) is not None and not gain.low > 0
        ]
        if where:
            sentences.append(
                f"With {_enumerated(where)} labels {_in_words(arm, recipe)} is not measurably better than "
                f"{_in_words(other, recipe)}."
            )
    return sentences


def _in_words(arm: str, recipe: Recipe) -> str:
    source, target = Path(recipe.source).name, Path(recipe.target).name
    return {
        "pixels": "logistic regression on the pixels",
        "random": "the same network with random weights, frozen",
        "source": f"the encoder of {source}, frozen,",
        "finetuned": f"fine-tuning from {source}",
        "scratch": "training from scratch",
        "generated": f"training with examples that a generator of {source} draws",
        "target": f"an encoder of {target}'s own unlabelled images",
    }[arm]


def _enumerated(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def budgets(results: Iterable[Result]) -> list[int]:
    """Numbers of labels, rising."""
    return sorted({result.labels for result in results})


def write(folder: Path, comparison: Comparison) -> None:
    recipe = comparison.recipe
    facts = {
        "recipe": recipe.name,
        "source": Path(recipe.source).name,
        "target": Path(recipe.target).name,
        "test_images": comparison.test_images,
        "results": [asdict(result) for result in comparison.results],
        "words": words(comparison.results, recipe),
    }
    (folder / NUMBERS_FILE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def read(folder: Path) -> list[Result]:
    """What `write` has written to the folder, if anything."""
    path = folder / NUMBERS_FILE
    return [Result(**fields) for fields in json.loads(path.read_text())["results"]] if path.is_file() else []
