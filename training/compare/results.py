"""What a comparison found, in numbers, in a picture and in words."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from training.compare.arms import ARMS, BASELINE, IN_WORDS, TRANSFERS
from training.measure.intervals import Interval, student
from training.recipe import Recipe
from training.report import charts
from training.report.html import page, table

NUMBERS_FILE, TABLE_FILE, PAGE_FILE = "comparison.json", "comparison.md", "comparison.html"
PICTURE_FILE = "comparison.svg"


@dataclass(frozen=True)
class Result:
    """One arm, trained once."""

    arm: str
    budget: int | None  # labels per class; None is all there are
    labels: int  # in all
    seed: int
    accuracy: float

    def is_of(self, arm: str, budget: int | None, seed: int) -> bool:
        return (self.arm, self.budget, self.seed) == (arm, budget, seed)


def difference(results: Sequence[Result], arm: str, labels: int, baseline: str = BASELINE) -> Interval | None:
    """Arm less baseline, seed by seed: both had the same labels. None where either is missing."""
    by_seed = [
        {r.seed: r.accuracy for r in results if r.arm == each and r.labels == labels} for each in (arm, baseline)
    ]
    both = sorted(set(by_seed[0]) & set(by_seed[1]))
    return student([by_seed[0][seed] - by_seed[1][seed] for seed in both]) if both and arm != baseline else None


def words(results: Sequence[Result], recipe: Recipe) -> list[str]:
    """Sentences: whether transfer helped, where it hurt, and what it should be ashamed of."""
    said = []
    for arm in TRANSFERS:
        judged: dict[str, list[str]] = {"helps": [], "hurts": [], "makes no difference that shows": []}
        for labels in _budgets(results):
            found = difference(results, arm, labels)
            if found is None:
                continue
            verdict = "helps" if found.low > 0 else "hurts" if found.high < 0 else "makes no difference that shows"
            judged[verdict].append(f"{labels:,} ({100 * found.mean:+.1f} points)")
        for verdict, where in judged.items():
            if where:
                named = "NEGATIVE TRANSFER: " if verdict == "hurts" else ""
                said.append(
                    f"{named}Against training from scratch, {_called(arm, recipe)} {verdict} "
                    f"with {_listed(where)} labels."
                )
    for arm, other in (("source", "random"), ("source", "pixels"), ("source", "target")):
        where = [
            f"{labels:,}"
            for labels in _budgets(results)
            if (found := difference(results, arm, labels, other)) is not None and not found.low > 0
        ]
        if where:
            said.append(
                f"With {_listed(where)} labels {_called(arm, recipe)} is not shown to be better than "
                f"{_called(other, recipe)}."
            )
    return said


def _called(arm: str, recipe: Recipe) -> str:
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


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _budgets(results: Iterable[Result]) -> list[int]:
    return sorted({result.labels for result in results})


def _arms(results: Iterable[Result]) -> list[str]:
    found = {result.arm for result in results}
    return [arm for arm in ARMS if arm in found]


def _of(results: Sequence[Result], arm: str, labels: int) -> list[float]:
    return [r.accuracy for r in results if r.arm == arm and r.labels == labels]


def rows(results: Sequence[Result]) -> list[list[str]]:
    """A row for each arm, a column for each number of labels: mean, interval, and the difference to scratch."""
    made = []
    for arm in _arms(results):
        row = [arm]
        for labels in _budgets(results):
            values = _of(results, arm, labels)
            if not values:
                row.append("")
                continue
            found, gain = student(values), difference(results, arm, labels)
            told = f"{100 * found.mean:.1f} ± {100 * (found.high - found.mean):.1f}"
            if gain is not None:
                told += f" ({100 * gain.mean:+.1f} ± {100 * (gain.high - gain.mean):.1f})"
            row.append(told)
        made.append(row)
    return made


def _drawn(results: Sequence[Result]) -> tuple[str, list[charts.Series], str, str]:
    """What charts.lines takes: a line for each arm."""
    made = []
    for arm in _arms(results):
        labels = [each for each in _budgets(results) if _of(results, arm, each)]
        found = [student(_of(results, arm, each)) for each in labels]
        clipped = [(max(0.0, each.low), min(1.0, each.high)) for each in found]
        made.append(
            charts.Series(
                arm, labels, [each.mean for each in found], [low for low, _ in clipped], [high for _, high in clipped]
            )
        )
    return "Accuracy by the number of labels, with 95 % intervals", made, "labels", "accuracy"


def section(results: Sequence[Result], recipe: Recipe) -> str:
    """For a page: words, chart, table."""
    heads = ["arm", *(f"{labels:,} labels" for labels in _budgets(results))]
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in words(results, recipe))
    arms = "".join(f"<li><b>{arm}</b>: {IN_WORDS[arm]}</li>" for arm in _arms(results))
    numbers = table(heads, rows(results), range(1, len(heads)))
    chart = charts.lines(*_drawn(results), log_x=True)
    return (
        f"{said}{chart}<p>Accuracy in per cent on all test images, mean over seeds ± 95 % interval "
        "(what varies is the network's start and which images have labels; the test images are the same); in brackets "
        f"the difference to scratch, seed by seed.</p>{numbers}<ul>{arms}</ul>"
    )


def write(folder: Path, recipe: Recipe, results: Sequence[Result], tested: int) -> Path:
    """Numbers, table, picture and page; the page is given back."""
    facts = {
        "recipe": recipe.name,
        "source": Path(recipe.source).name,
        "target": Path(recipe.target).name,
        "test_images": tested,
        "results": [asdict(result) for result in results],
        "words": words(results, recipe),
    }
    (folder / NUMBERS_FILE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    heads = ["arm", *(f"{labels:,} labels" for labels in _budgets(results))]
    seeds = len({result.seed for result in results})
    lines = [
        f"Accuracy in per cent on {tested:,} test images, mean of {seeds} seeds ± 95 % interval; in brackets the "
        "difference to scratch, seed by seed.",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- |{' --- |' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows(results)),
        "",
        *words(results, recipe),
        "",
    ]
    (folder / TABLE_FILE).write_text("\n".join(lines))
    (folder / PICTURE_FILE).write_text(charts.lines_file(*_drawn(results), log_x=True))
    title = f"{recipe.name}: does transfer help?"
    (folder / PAGE_FILE).write_text(page(title, [("Against the honest arms", section(results, recipe))]))
    return folder / PAGE_FILE


def read(folder: Path) -> list[Result]:
    """What was written there before; nothing, where nothing was."""
    path = folder / NUMBERS_FILE
    return [Result(**fields) for fields in json.loads(path.read_text())["results"]] if path.is_file() else []
