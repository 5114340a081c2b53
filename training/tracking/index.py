"""The index of runs: `index.jsonl` beside their folders gets a line whenever a run reaches a state.

    running ─┬─ pretrained, trained, published    the task is done
             ├─ stopped                           Ctrl-C
             └─ failed                            with its error

Each line is a whole row, so that a damaged one costs a state and no run. A line is written by one call, and the system
puts lines of several processes one after the other. A run holds a lock in its folder: one that is `running` without it
was killed. What the index lacks is read from the runs' folders.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training import jsonl, ranks
from training.errors import TrainingError, in_short
from training.learning.journal import JOURNAL_FILE
from training.progress import say
from training.publish.provenance import commit, versions
from training.recipe import RECIPE_FILE, Recipe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

INDEX_FILE, DATA_FILE, DONE_FILE = "index.jsonl", "data.json", "bundle.txt"
STATES = ("running", "pretrained", "trained", "published", "stopped", "failed")
_LOCK_FILE = ".lock"
_PATIENCE_S = 1.0  # for the lock: who lists runs holds it for an instant


@dataclass(frozen=True)
class Run:
    """A run as the lines of the index, and its folder, have it."""

    folder: Path
    state: str
    started: datetime
    time: datetime  # of the last state
    task: str = ""  # run, pretrain, transfer or export
    resume: str = ""  # the command that resumes it
    directory: str = ""  # where that was typed
    error: str = ""
    bundle: str = ""  # folder of the bundle that was published last
    commit: str = ""
    minutes: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)  # part, as in target/test → fingerprint
    settings: dict[str, Any] = field(default_factory=dict)  # the whole recipe, by tables
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # name → value, images, how

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> str:
        return str(self.settings.get("name", ""))

    @property
    def stays(self) -> bool:
        """Whether its folder is still there."""
        return (self.folder / RECIPE_FILE).is_file()


@contextmanager
def tracked(
    folder: Path, recipe: Recipe, task: str, resume: str | None = None, ends: str | None = None
) -> Iterator[None]:
    """Writes how the run in `folder` begins and ends; `ends` is its state at the end, if that is not written inside.

    One process at a time may train a run. Lines are written by rank 0.
    """
    facts = {"task": task, "resume": resume or "", "directory": str(Path.cwd())}
    lock = ranks.from_first(lambda: _lock(folder))
    try:
        reach(folder, recipe, "running", **facts)
        try:
            yield
        except KeyboardInterrupt:
            reach(folder, recipe, "stopped", **facts)
            raise
        except Exception as error:
            message = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {in_short(error)}"
            reach(folder, recipe, "failed", error=message, **facts)
            raise
        if ends is not None:
            reach(folder, recipe, ends, **facts)
    finally:
        if lock is not None and ranks.first():
            os.close(lock)


def reach(folder: Path, recipe: Recipe, state: str, **facts: Any) -> None:
    """Append a line to the index. A run goes on without it where it cannot be written."""
    if not ranks.first():
        return
    own = Path(os.path.abspath(folder))
    row: dict[str, Any] = {
        "run": own.name,
        "state": state,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    row |= {"minutes": _minutes(own), "settings": recipe.model_dump(mode="json"), **_source_tree(), **facts}
    path = own.parent / INDEX_FILE
    try:
        if path.exists() and path.stat().st_size and not any(map(_is_row, jsonl.lines(path))):
            say(f"note: {path} is another program's file: the run is not listed in it")
            return
        _append(path, json.dumps(row).encode())
    except OSError as error:
        say(f"note: {path}: cannot be written: {error.strerror}; the run goes on, and is not listed there")


def _append(path: Path, line: bytes) -> None:
    """In one write. A line that a full disk has cut short is ended first.

    So is one that another process is writing, which leaves a blank line: readers pass over it.
    """
    with path.open("ab+", buffering=0) as file:
        cut = b""
        if file.tell():  # at its end
            file.seek(-1, os.SEEK_END)
            cut = b"" if file.read(1) == b"\n" else b"\n"
        file.write(cut + line + b"\n")


def _lock(folder: Path) -> int | None:
    """An open file that holds the lock; None where the system or the file system has no locks."""
    if fcntl is None:
        return None
    try:
        file = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None
    until = time.monotonic() + _PATIENCE_S
    while (taken := _try_lock(file)) is False and time.monotonic() < until:
        time.sleep(0.05)
    if taken:
        return file
    os.close(file)
    if taken is None:
        return None
    raise TrainingError(f"{folder}: another process is training this run: wait for its end, or stop it")


def _try_lock(file: int, shared: bool = False) -> bool | None:
    """False: another process has it; None: the file system has no locks. Forked children inherit none."""
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _is_locked(folder: Path) -> bool:
    if fcntl is None:
        return True
    try:
        with (folder / _LOCK_FILE).open("rb") as file:
            return _try_lock(file.fileno(), shared=True) is False
    except OSError:
        return False


@cache
def _source_tree() -> dict[str, Any]:
    return {"commit": commit(), "versions": versions() | {"torch": version("torch")}}


def published(folder: Path) -> Path | None:
    """The bundle that the run published last."""
    path = folder / DONE_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    if not lines:
        return None
    bundle = Path(os.fsdecode(lines[-1]))
    if not bundle.is_absolute() or b"\0" in lines[-1]:
        raise TrainingError(f"{path}: damaged: publish the run again with graft-train export {folder}")
    return bundle


def read(folder: Path) -> list[Run]:
    """The runs that the index in `folder` lists, and those in its folders that it lacks: the newest last."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in jsonl.read(folder / INDEX_FILE):
        if _is_row(line):
            rows.setdefault(line["run"], []).append(line)
    runs = [_merged(folder / name, lines) for name, lines in rows.items()]
    if folder.is_dir():
        unlisted = (child for child in folder.iterdir() if child.name not in rows)
        runs += [run for child in unlisted if (run := _of_folder(child)) is not None]
    return sorted(runs, key=lambda run: run.started)


def _is_row(line: dict[str, Any]) -> bool:
    name = line.get("run")
    if not isinstance(name, str) or name in ("", "..") or "\0" in name or Path(name).name != name:
        return False
    return line.get("state") in STATES and _time(line.get("time")) is not None


def _time(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else None


_LATER = ("folder", "state", "started", "time")  # fields that are not taken from the lines as they are
_TYPES = {
    each.name: str if each.type is str else (int, float) if each.name == "minutes" else dict
    for each in fields(Run)
    if each.name not in _LATER
}


def _merged(folder: Path, lines: list[dict[str, Any]]) -> Run:
    """A later line's facts stand for an earlier one's."""
    facts: dict[str, Any] = {}
    for line in lines:
        facts |= {name: line[name] for name, type_ in _TYPES.items() if isinstance(line.get(name), type_)}
    facts["metrics"] = _numbers(facts.get("metrics", {}))
    last = lines[-1]
    if last["state"] != "failed":
        facts.pop("error", None)
    state = last["state"]
    if state == "running":
        here = _facts_of(folder)
        state = "running" if _is_locked(folder) else here.get("state", "stopped")
        facts |= {name: value for name, value in here.items() if name != "state" and value is not None}
    started, ended = _time(lines[0]["time"]), _time(last["time"])
    assert started is not None  # of a row
    assert ended is not None
    return Run(folder, state, started=started, time=ended, **facts)


def _numbers(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: metric
        for name, metric in metrics.items()
        if isinstance(metric, dict) and isinstance(metric.get("value"), int | float)
    }


def _of_folder(folder: Path) -> Run | None:
    """A run that the index lacks: older than the index, or moved here. None if the folder is not a run's."""
    if not (folder / DATA_FILE).is_file():
        return None
    try:
        began = datetime.fromtimestamp((folder / RECIPE_FILE).stat().st_mtime, UTC)
        settings = json.loads((folder / RECIPE_FILE).read_bytes())
        data = json.loads((folder / DATA_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    facts = {
        "settings": settings if isinstance(settings, dict) else {},
        "data": data if isinstance(data, dict) else {},
        **_facts_of(folder),
    }
    return Run(folder, **{"state": "running" if _is_locked(folder) else "stopped", **facts}, started=began, time=began)


def _facts_of(folder: Path) -> dict[str, Any]:
    """What the folder of a run says of its end: state and bundle where it has published, metrics, minutes."""
    facts: dict[str, Any] = {"minutes": _minutes(folder)}
    try:
        bundle = published(folder)
    except TrainingError:
        bundle = None
    if bundle is not None:
        tests = [line for line in jsonl.read(folder / JOURNAL_FILE) if line.get("stage") == "test"]
        values = tests[-1] if tests else {}
        facts |= {"state": "published", "bundle": str(bundle)}
        facts["metrics"] = _numbers({name: {"value": value} for name, value in values.items()})
    return facts


def _minutes(folder: Path) -> float | None:
    """The time that the epochs took; None before the first."""
    seconds = [line.get("seconds") for line in jsonl.read(folder / JOURNAL_FILE) if "epoch" in line]
    return sum(each for each in seconds if isinstance(each, int | float)) / 60 if seconds else None
