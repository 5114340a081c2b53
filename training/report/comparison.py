"""A comparison as a page, a picture and a table."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from training.compare.arms import ARMS, IN_WORDS
from training.compare.results import Comparison, Result, budgets, difference, interval, words
from training.recipe import Recipe
from training.report import charts
from training.report.html import page, table

TABLE_FILE, PICTURE_FILE, PAGE_FILE = "comparison.md", "comparison.svg", "comparison.html"


def write(folder: Path, comparison: Comparison) -> Path:
    """The page; table and picture beside it."""
    recipe, results = comparison.recipe, comparison.results
    (folder / TABLE_FILE).write_text("\n".join(_markdown(comparison)))
    (folder / PICTURE_FILE).write_text(charts.lines_file(*_lines(results), log_x=True))
    title = f"{recipe.name}: does transfer help?"
    (folder / PAGE_FILE).write_text(page(title, [("Against the honest arms", section(results, recipe))]))
    return folder / PAGE_FILE


def _markdown(comparison: Comparison) -> list[str]:
    results = comparison.results
    heads = _heads(results)
    seeds = len({result.seed for result in results})
    return [
        f"Accuracy in per cent on {comparison.test_images:,} test images, mean of {seeds} seeds ± 95 % interval; "
        "in brackets the difference to scratch, seed by seed.",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- |{' --- |' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in _rows(results)),
        "",
        *words(results, comparison.recipe),
        "",
    ]


def section(results: Sequence[Result], recipe: Recipe) -> str:
    """For a page: words, chart, table."""
    heads = _heads(results)
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in words(results, recipe))
    arms = "".join(f"<li><b>{arm}</b>: {IN_WORDS[arm]}</li>" for arm in _arms(results))
    numbers = table(heads, _rows(results), range(1, len(heads)))
    chart = charts.lines(*_lines(results), log_x=True)
    return (
        f"{said}{chart}<p>Accuracy in per cent on all test images, mean over seeds ± 95 % interval "
        "(what varies is the network's start and which images have labels; the test images are the same); in brackets "
        f"the difference to scratch, seed by seed.</p>{numbers}<ul>{arms}</ul>"
    )


def _heads(results: Sequence[Result]) -> list[str]:
    return ["arm", *(f"{labels:,} labels" for labels in budgets(results))]


def _rows(results: Sequence[Result]) -> list[list[str]]:
    """A row for each arm, a column for each number of labels: mean, interval, and the difference to scratch."""
    made = []
    for arm in _arms(results):
        row = [arm]
        for labels in budgets(results):
            values = _of(results, arm, labels)
            if not values:
                row.append("")
                continue
            found, gain = interval(values), difference(results, arm, labels)
            told = f"{100 * found.mean:.1f} ± {100 * (found.high - found.mean):.1f}"
            if gain is not None:
                told += f" ({100 * gain.mean:+.1f} ± {100 * (gain.high - gain.mean):.1f})"
            row.append(told)
        made.append(row)
    return made


def _lines(results: Sequence[Result]) -> tuple[str, list[charts.Series], str, str]:
    """What charts.lines takes: a line for each arm."""
    made = []
    for arm in _arms(results):
        labels = [each for each in budgets(results) if _of(results, arm, each)]
        found = [interval(_of(results, arm, each)) for each in labels]
        clipped = [(max(0.0, each.low), min(1.0, each.high)) for each in found]
        made.append(
            charts.Series(
                arm, labels, [each.mean for each in found], [low for low, _ in clipped], [high for _, high in clipped]
            )
        )
    return "Accuracy by the number of labels, with 95 % intervals", made, "labels", "accuracy"


def _arms(results: Iterable[Result]) -> list[str]:
    found = {result.arm for result in results}
    return [arm for arm in ARMS if arm in found]


def _of(results: Sequence[Result], arm: str, labels: int) -> list[float]:
    return [r.accuracy for r in results if r.arm == arm and r.labels == labels]
