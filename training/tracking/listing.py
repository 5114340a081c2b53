"""Runs as text: a table of them, or some side by side."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from training.errors import TrainingError, listed, printable
from training.tracking.index import INDEX_FILE, Run, read

Setting = str | int | float | bool | list[Any] | None

_SHOWN = ("accuracy", "image_auroc", "pixel_auroc", "false_alarm_rate")  # metrics that the table has columns for
_LOWER_IS_BETTER = ("mse", "error", "error_before_temperature", "false_alarm_rate", "loss")  # ends of their names
_MOST_CHANGES = 3  # that the table shows of a run
_WORDS = ("title",)  # settings that change nothing
_NUMBER = re.compile(r"\d[\d.,]*")  # in how a metric was measured: counts, and what it is the least of
_TEST = "target/test"  # fingerprint of the images that metrics are measured on


def runs_in(folder: Path, names: Sequence[str] = ()) -> list[Run]:
    """Those whose name, recipe or pattern, as in drawn-*, is among the names; all without names. The newest last."""
    found = read(folder)
    if not found:
        raise TrainingError(
            f"{folder}: no runs yet: begin one with graft-train run RECIPE, or name the folder that has yours with "
            "--folder"
        )
    chosen: set[str] = set()
    for name in names:
        matching = {run.name for run in found if _is_called(run, name, folder)}
        if not matching:
            raise TrainingError(
                f"{folder / INDEX_FILE}: no run or recipe is called {printable(name)}; the last runs are "
                f"{listed([run.name for run in found[::-1]])}"
            )
        chosen |= matching
    return [run for run in found if run.name in chosen] if names else found


def _is_called(run: Run, name: str, folder: Path) -> bool:
    return name == run.recipe or fnmatchcase(run.name, name) or Path(os.path.abspath(name)) == _absolute(folder, run)


def _absolute(folder: Path, run: Run) -> Path:
    return Path(os.path.abspath(folder / run.name))


def run_called(name: str, folder: Path) -> Run:
    """A run by its name in `folder`, or by the path of its own."""
    path = Path(os.path.abspath(name))
    homes = [folder] if path.parent == Path(os.path.abspath(folder)) else [folder, path.parent]
    for home in homes:
        for run in read(home):
            if (home == folder and run.name == name) or _absolute(home, run) == path:
                return run
    known = [run.name for run in runs_in(folder)[::-1]]
    raise TrainingError(f"{folder / INDEX_FILE}: no run is called {printable(name)}; the last runs are {listed(known)}")


def by_metric(runs: Sequence[Run], metric: str) -> list[Run]:
    """The best first; those without the metric last."""
    have = [run for run in runs if metric in run.metrics]
    if not have:
        known = sorted({name for run in runs for name in run.metrics})
        raise TrainingError(f"--sort {printable(metric)}: no run has it; they have {', '.join(known) or 'no metrics'}")
    ordered = sorted(have, key=lambda run: run.metrics[metric]["value"], reverse=not metric.endswith(_LOWER_IS_BETTER))
    return ordered + [run for run in runs if metric not in run.metrics]


def table(runs: Sequence[Run], known: Sequence[Run], sort: str | None = None) -> Iterator[str]:
    """Lines. What changed is told beside the run of the same recipe that came before, among all `known`."""
    metrics = _columns(runs, sort)
    rows = [["run", "state", "started", "minutes", "bundle", *metrics, "changed since the one before"]]
    for run in runs:
        numbers = [_number(run.metrics[name]["value"]) if name in run.metrics else "" for name in metrics]
        rows.append(
            [run.name, run.state, _when(run.started), _minutes(run), _bundle(run), *numbers, _changes(run, known)]
        )
    yield from _aligned(rows, numeric=(3, *range(5, 5 + len(metrics))))
    yield from _below(runs, metrics)


def _columns(runs: Sequence[Run], sort: str | None) -> list[str]:
    known = {name for run in runs for name in run.metrics}
    chosen = [name for name in _SHOWN if name in known] or sorted(known)[:3]
    return chosen if sort is None or sort in chosen else [sort, *chosen]


def _changes(run: Run, known: Sequence[Run]) -> str:
    before = [other for other in known if other.recipe == run.recipe and other.started < run.started]
    if not run.settings:
        return "its recipe is lost"
    if not before:
        return f"the first of {printable(run.recipe)}"
    both = _differences([before[-1], run])
    told = [f"{name} {_in_words(old)} → {_in_words(new)}" for name, (old, new) in both.items()]
    return listed(told, _MOST_CHANGES) if told else "nothing"


def _below(runs: Sequence[Run], metrics: Sequence[str]) -> Iterator[str]:
    """What the table has no place for: failures, how to resume, and numbers that are not comparable."""
    yield from _incomparable(runs, metrics)
    for run in runs:
        if run.state == "failed" and run.error:
            yield f"{printable(run.name)} failed: {printable(run.error)}"
        if run.state in ("stopped", "failed") and run.resume and run.stays:
            yield f"resume {printable(run.name)}: {_command(run)}"
        elif run.state in ("stopped", "failed") and not run.stays:
            yield f"{printable(run.name)}: its folder is gone: it cannot be resumed"


def _command(run: Run) -> str:
    here = not run.directory or Path(run.directory) == Path.cwd()
    return printable(run.resume if here else f"cd {shlex.quote(run.directory)} && {run.resume}")


def _incomparable(runs: Sequence[Run], metrics: Sequence[str]) -> Iterator[str]:
    tests = {str(run.data[_TEST]) for run in runs if run.metrics and _TEST in run.data}
    if len(tests) > 1:
        yield f"note: measured on {len(tests)} different sets of test images: compare metrics of the same set only"
    for name in metrics:
        ways = {_NUMBER.sub("…", str(how)) for run in runs if (how := run.metrics.get(name, {}).get("how"))}
        if len(tests) <= 1 and len(ways) > 1:
            yield f"note: {name} was measured in {len(ways)} ways: {'; '.join(sorted(ways))}"


def comparison(runs: Sequence[Run]) -> Iterator[str]:
    """Lines: metrics side by side, with differences from the first run, and the settings that differ."""
    rows = [["", *(run.name for run in runs)], ["state", *(run.state for run in runs)]]
    rows.append(["started", *(_when(run.started) for run in runs)])
    rows.append(["minutes", *(_minutes(run) for run in runs)])
    rows.append(["bundle", *(_bundle(run) or "-" for run in runs)])
    if len({run.commit for run in runs}) > 1:
        rows.append(["commit", *(run.commit or "-" for run in runs)])
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    first = runs[0].metrics
    rows += [
        [name, *(_beside(run.metrics.get(name), first.get(name), run is runs[0]) for run in runs)] for name in metrics
    ]
    differences = _differences(runs)
    rows += [[""] * len(rows[0])] if differences else []
    rows += [[name, *(_in_words(value) for value in values)] for name, values in differences.items()]
    yield from _aligned(rows)
    if not differences and all(run.settings for run in runs):
        yield "all settings are the same"
    for run in runs:
        if not run.settings:
            yield f"note: {printable(run.name)}: its recipe is lost: neither the index nor its folder has it"
    yield from _incomparable(runs, metrics)


def as_json(runs: Sequence[Run]) -> str:
    return json.dumps([_fields(run) for run in runs], indent=2)


def comparison_as_json(runs: Sequence[Run]) -> str:
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    facts = {
        "runs": [run.name for run in runs],
        "metrics": {name: [run.metrics.get(name, {}).get("value") for run in runs] for name in metrics},
        "settings": _differences(runs),
    }
    return json.dumps(facts, indent=2)


def _fields(run: Run) -> dict[str, Any]:
    fields = vars(run) | {"started": run.started.isoformat(), "time": run.time.isoformat()}
    return {"run": run.name, **fields, "folder": str(run.folder)}


def _differences(runs: Sequence[Run]) -> dict[str, list[Setting]]:
    """Settings, as in pretrain.epochs, with each run's value; None where it has none."""
    each = [dict(_flat(run.settings)) for run in runs if run.settings]
    names = dict.fromkeys(name for settings in each for name in settings if name not in _WORDS)
    differing = [name for name in names if any(other.get(name) != each[0].get(name) for other in each)]
    return {name: [dict(_flat(run.settings)).get(name) for run in runs] for name in differing}


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _beside(metric: dict[str, Any] | None, first: dict[str, Any] | None, is_first: bool) -> str:
    if metric is None:
        return "-"
    value = metric["value"]
    return _number(value) if is_first or first is None else f"{_number(value)} ({value - first['value']:+.4f})"


def _bundle(run: Run) -> str:
    """Its name and version."""
    return "/".join(Path(run.bundle).parts[-2:])


def _number(value: float) -> str:
    return f"{value:.4f}"


def _minutes(run: Run) -> str:
    return "" if run.minutes is None else f"{run.minutes:.1f}"


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _in_words(value: Setting) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _aligned(rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> Iterator[str]:
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            cell.rjust(width) if place in numeric else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()
