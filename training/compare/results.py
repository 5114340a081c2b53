"""The results of a comparison, and what they say."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.compare.arms import BACKBONE, BASELINE, TRANSFERS
from training.measure.intervals import Interval, student
from training.recipe import Recipe

NUMBERS_FILE = "comparison.json"


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


def difference(results: Sequence[Result], arm: str, labels: int, baseline: str = BASELINE) -> Interval | None:
    """Arm less baseline, paired by seed: both had the same labels. None where either is missing."""
    by_seed = [
        {r.seed: r.accuracy for r in results if r.arm == each and r.labels == labels} for each in (arm, baseline)
    ]
    both = sorted(set(by_seed[0]) & set(by_seed[1]))
    return student([by_seed[0][seed] - by_seed[1][seed] for seed in both]) if both and arm != baseline else None


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
    sentences += _against_all(results, BACKBONE, recipe)
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


def _against_all(results: Sequence[Result], arm: str, recipe: Recipe) -> list[str]:
    """Sentences: where an arm wins against the best of the others, and where it loses."""
    verdicts: dict[str, list[str]] = {"beats every other arm": [], "is level with the best other arm": [], "loses": []}
    for labels in budgets(results):
        others = {r.arm for r in results if r.labels == labels} - {arm}
        gains = {other: gain for other in others if (gain := difference(results, arm, labels, other)) is not None}
        if not gains:
            continue
        best = min(gains, key=lambda other: gains[other].mean)
        gain = gains[best]
        verdict = 0 if gain.low > 0 else 2 if gain.high < 0 else 1
        against = f"{labels:,} ({100 * gain.mean:+.1f} points, against {best})"
        list(verdicts.values())[verdict].append(against)
    name = _in_words(arm, recipe)
    name = name[0].upper() + name[1:]
    return [f"{name} {verdict} with {_enumerated(where)} labels." for verdict, where in verdicts.items() if where]


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
        BACKBONE: "a frozen EfficientNet-Lite0 that has seen ImageNet alone, with a linear head,",
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
