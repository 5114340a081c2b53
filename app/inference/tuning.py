"""How a bundle's graphs run fastest on this machine: tried once it is served, off the way of requests.

    each graph ─▶ threads ─▶ level of optimisation ─▶ OpenVINO, where this onnxruntime has it ─▶ the fastest stays
                     └──────────────┴─────────────────────┴─ what misses the golden pairs is out

Each way runs a batch of one image and one of several a few times, and pauses in between, so that requests find the
processors free. Another way than the present one has to be clearly faster, as times of a busy machine vary.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from math import inf, sqrt
from pathlib import Path
from typing import Literal

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.manifest import Graph
from app.bundle.session import CPU, LEVELS, OPENVINO, Execution, Session, available
from app.bundle.store import golden_pairs, graph_bytes
from app.errors import BundleError

State = Literal["off", "waiting", "measuring", "done", "failed"]
Pause = Callable[[float], None]
Open = Callable[[bytes, Graph, str, Execution], Session]

_BATCH = 16  # images in the larger of the two batches that are timed, fewer of large images
_ROUNDS, _ROUND_S = 7, 0.4  # the best of so many rounds counts; of slow graphs, of as many as fit into that time
_PAUSES = 3  # times as long as each run
_GAIN = 0.95  # of the present way's time, at most, for another to be taken
_LEVELS = [level for level in LEVELS if level != "none"]


class Stopped(Exception):
    """The service is about to end."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to run one graph."""

    graph: str
    execution: Execution
    one_s: float | None = None  # a batch of one image
    several_s: float | None = None  # a batch of `images`
    images: int = 1
    problem: str | None = None  # why it cannot be taken
    chosen: bool = False


@dataclass(slots=True)
class Tuning:
    """What was tried for a model so far."""

    state: State
    trials: list[Trial] = field(default_factory=list)
    problem: str | None = None


def open_session(model: bytes, graph: Graph, where: str, execution: Execution) -> Session:
    providers, threads, level = execution
    return Session(model, graph, where, threads=threads, providers=providers, level=level)


def tune(
    bundle: Bundle,
    folder: Path,
    threads: Sequence[int],
    pause: Pause = time.sleep,
    providers: Callable[[], Sequence[str]] = available,
    open_session: Open = open_session,
) -> Iterator[list[Trial]]:
    """Yields what was tried for each graph, when it runs in the fastest way that was found.

    `threads`: the numbers of them that may be tried. `pause` may raise Stopped. Raises BundleError if the folder no
    longer has the bundle.
    """
    stored = golden_pairs(folder, bundle.manifest)
    pixels = np.resize(stored["pixels"], (min(_BATCH, bundle.tiles_at_once), *stored["pixels"].shape[1:]))
    taken = {bundle.manifest.graphs.encoder.input.name: pixels} | bundle.encode(pixels, explain=True, patches=True)
    for part, (session, graph) in _graphs(bundle).items():
        if session.execution.providers != CPU:
            continue
        where = f"{bundle.name}/{bundle.version}/{graph.file}"
        model = graph_bytes(folder, graph)
        if sha256(model).digest() != session.digest:
            raise BundleError(f"{where}: the file is no longer the one that was loaded")
        opened = partial(open_session, model, graph, where)
        inputs, tolerances = taken[graph.input.name], bundle.manifest.golden.outputs
        search = _Search(part, session, opened, taken=inputs, tolerances=tolerances, pause=pause)
        for count in threads:
            search.attempt(Execution(CPU, count))
        for level in _LEVELS:
            search.attempt(search.best.execution._replace(level=level))
        if OPENVINO in providers():
            search.attempt(Execution((OPENVINO, *CPU), search.best.execution.threads))
        if search.best is not session:
            session.run_as(search.best)
        yield search.trials()


def _graphs(bundle: Bundle) -> Mapping[str, tuple[Session, Graph]]:
    graphs = bundle.manifest.graphs
    pairs = {
        "encoder": (bundle.encoder, graphs.encoder),
        "decoder": (bundle.decoder, graphs.decoder),
        "head": (bundle.head, graphs.head),
        "explain": (bundle.explainer, graphs.explain),
        "patches": (bundle.patches, graphs.patches),
    }
    return {part: (session, graph) for part, (session, graph) in pairs.items() if session and graph}


class _Search:
    """For the best way to run one graph; `best` runs it so."""

    def __init__(
        self,
        part: str,
        session: Session,
        opened: Callable[[Execution], Session],
        taken: np.ndarray,
        tolerances: Mapping[str, float],
        pause: Pause,
    ) -> None:
        self._part, self._opened, self._batches = part, opened, (taken[:1], taken)
        self._tolerances, self._pause = tolerances, pause
        self._expected = session.run(taken)  # the golden pairs hold for it
        self.best = session
        self._tried: dict[Execution, Trial] = {}
        self._note(session, self._times([session])[0])

    def attempt(self, execution: Execution) -> None:
        """Times it beside the best so far, in turns: so both see the same machine."""
        if execution in self._tried:
            return
        try:
            other = self._opened(execution)
            problem = self._disagreement(other)
        except BundleError as error:
            problem = str(error)
        if problem is not None:
            self._tried[execution] = Trial(self._part, execution, problem=problem)
            return
        best, its = self._times([self.best, other])
        self._note(other, its)
        if _mean(its) < _GAIN * _mean(best):
            self.best = other

    def trials(self) -> list[Trial]:
        return [replace(trial, chosen=execution == self.best.execution) for execution, trial in self._tried.items()]

    def _note(self, session: Session, times: tuple[float, float]) -> None:
        execution, images = session.execution, len(self._batches[1])
        self._tried[execution] = Trial(self._part, execution, one_s=times[0], several_s=times[1], images=images)

    def _times(self, sessions: Sequence[Session]) -> list[tuple[float, float]]:
        """Of each: seconds of the two batches, at best."""
        best, spent = [(inf, inf)] * len(sessions), 0.0
        for _ in range(_ROUNDS):
            for index, session in enumerate(sessions):
                one, several = (self._time(session, batch) for batch in self._batches)
                best[index] = min(best[index][0], one), min(best[index][1], several)
                spent += one + several
            if spent > _ROUND_S * len(sessions):
                break
        return best

    def _time(self, session: Session, batch: np.ndarray) -> float:
        start = time.perf_counter()
        session.run(batch)
        took = time.perf_counter() - start
        self._pause(_PAUSES * took)
        return took

    def _disagreement(self, other: Session) -> str | None:
        """Which output is farther from the present one than golden pairs may be, and how far."""
        for name, values in other.run(self._batches[1]).items():
            expected, allowed = self._expected[name], self._tolerances.get(name, min(self._tolerances.values()))
            off = float(np.abs(values - expected).max()) / max(1.0, float(np.abs(expected).max()))
            if not off <= allowed:  # NaN is refused, too
                return f"{name} is off by {off:.3g} of its range (allowed: {allowed:.3g})"
        return None


def _mean(times: tuple[float, float]) -> float:
    """Geometric: both batches weigh the same."""
    return sqrt(times[0] * times[1])
