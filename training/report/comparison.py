"""A comparison as a page, a chart and a table."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from training.compare.arms import ARMS, IN_WORDS
from training.compare.results import Comparison, Result, budgets, difference, words
from training.measure.intervals import student
from training.recipe import Recipe
from training.report import charts
from training.report.html import page, table

TABLE_FILE, PICTURE_FILE, PAGE_FILE = "comparison.md", "comparison.svg", "comparison.html"


def write(folder: Path, comparison: Comparison) -> Path:
    """Write the page, with table and chart beside it; returns the page."""
    recipe, results = comparison.recipe, comparison.results
    (folder / TABLE_FILE).write_text("\n".join(_markdown(comparison)))
    (folder / PICTURE_FILE).write_text(charts.lines_file(*_lines(results), log_x=True))
    title = f"{recipe.name}: does transfer help?"
    (folder / PAGE_FILE).write_text(page(title, [("Against the baselines", section(results, recipe))]))
    return folder / PAGE_FILE


def _markdown(comparison: Comparison) -> list[str]:
    results = comparison.results
    heads = _heads(results)
    seeds = len({result.seed for result in results})
    return [
        f"Accuracy in per cent on {comparison.test_images:,} test images, mean of {seeds} seeds ± 95 % interval; "
        "in brackets the difference from scratch, paired by seed.",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- |{' --- |' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in _rows(results)),
        "",
        *words(results, comparison.recipe),
        "",
    ]


def section(results: Sequence[Result], recipe: Recipe) -> str:
    """HTML: sentences, chart, table."""
    heads = _heads(results)
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in words(results, recipe))
    arms = "".join(f"<li><b>{arm}</b>: {IN_WORDS[arm]}</li>" for arm in _arms(results))
    numbers = table(heads, _rows(results), range(1, len(heads)))
    chart = charts.lines(*_lines(results), log_x=True)
    return (
        f"{sentences}{chart}<p>Accuracy in per cent on all test images, mean over seeds ± 95 % interval "
        "(seeds vary the initial weights and which images have labels; the test images are the same); in brackets "
        f"the difference from scratch, paired by seed.</p>{numbers}<ul>{arms}</ul>"
    )


def _heads(results: Sequence[Result]) -> list[str]:
    return ["arm", *(f"{labels:,} labels" for labels in budgets(results))]


def _rows(results: Sequence[Result]) -> list[list[str]]:
    """A row for each arm, a column for each number of labels: mean, interval, and the difference from scratch."""
    rows = []
    for arm in _arms(results):
        row = [arm]
        for labels in budgets(results):
            values = _accuracies(results, arm, labels)
            if not values:
                row.append("")
                continue
            accuracy, gain = student(values), difference(results, arm, labels)
            cell = f"{100 * accuracy.mean:.1f} ± {100 * (accuracy.high - accuracy.mean):.1f}"
            if gain is not None:
                cell += f" ({100 * gain.mean:+.1f} ± {100 * (gain.high - gain.mean):.1f})"
            row.append(cell)
        rows.append(row)
    return rows


def _lines(results: Sequence[Result]) -> tuple[str, list[charts.Series], str, str]:
    """The arguments of charts.lines: a line for each arm."""
    series = []
    for arm in _arms(results):
        labels = [each for each in budgets(results) if _accuracies(results, arm, each)]
        means = [student(_accuracies(results, arm, each)) for each in labels]
        clipped = [(max(0.0, each.low), min(1.0, each.high)) for each in means]
        series.append(
            charts.Series(
                arm,
                x=labels,
                y=[each.mean for each in means],
                low=[low for low, _ in clipped],
                high=[high for _, high in clipped],
            )
        )
    return "Accuracy by the number of labels, with 95 % intervals", series, "labels", "accuracy"


def _arms(results: Iterable[Result]) -> list[str]:
    compared = {result.arm for result in results}
    return [arm for arm in ARMS if arm in compared]


def _accuracies(results: Sequence[Result], arm: str, labels: int) -> list[float]:
    return [r.accuracy for r in results if r.arm == arm and r.labels == labels]
