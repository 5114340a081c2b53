"""What Prometheus is told, true under several worker processes too. A leaf: prometheus_client and the standard library.

Workers share a folder (`shared_folder`): prometheus_client keeps the numbers of each in files there, and whichever
worker is asked adds them all up. Without such a folder they live in memory, in a registry of each Metrics' own.
"""

import contextlib
import operator
import os
import re
import tempfile
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.values import MutexValue, ValueClass

__all__ = ["CONTENT_TYPE", "OPERATIONS", "Metrics", "Sample", "Served", "shared_folder", "worker_gone"]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name; it looks when it is imported
UNKNOWN = "-"
_ON_IMAGES = {"classify", "encode", "reconstruct", "anomaly", "predict", "decode", "generate", "infer"}
OPERATIONS = frozenset(_ON_IMAGES | {"models", "drift", "healthz", "readyz", "metrics"})
SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SCORES = (-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)  # sums of z-scores
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1)
_MODEL = ("model", "version")
_ROOM = {  # bytes, by how prometheus_client names the files
    "histogram": 1 << 18,
    "counter": 1 << 16,
    **{f"gauge_{mode}": 1 << 16 for mode in ("livemax", "livemin", "livesum")},
}
_LEAST = ("process_start_time_seconds", "process_max_fds")  # of several workers' the lowest; all else is added up

_MOST_ASIDE = 1000

Kind = TypeVar("Kind", bound=MetricWrapperBase)
Labels = tuple[str | int, ...]


class Served(NamedTuple):
    """A model that is loaded and answers."""

    model: str
    version: int
    digest: str
    provider: str


class _Children(dict[Labels, Kind], Generic[Kind]):
    """A metric's children by the values of their labels, kept: finding one anew costs more than counting."""

    def __init__(self, metric: Kind, names: tuple[str, ...]) -> None:
        super().__init__()
        self._metric = metric
        self._at = names.index("model") if "version" in names else None

    def __missing__(self, labels: Labels) -> Kind:
        child = self[labels] = self._metric.labels(*labels)
        return child

    def forget(self, model: str, version: int) -> None:
        for labels in list(self):  # another thread may be adding some
            if self._at is not None and labels[self._at : self._at + len(_MODEL)] == (model, version):
                del self[labels]
                self._metric.remove(*labels)


class Metrics(Collector):
    """One per app. No label's value is a client's own word: a model that was never loaded counts as "-".

    What is counted is laid aside, and written by `write`: whenever somebody asks, when much has gathered, and, where
    other workers may be asked, again and again. A count costs half a microsecond, an observation one and a half, with
    workers two to three times that; a hundred written together cost little more than one.
    """

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, of which nobody asks
        self._own = CollectorRegistry()
        self._folder = os.environ.get(FOLDER) if ValueClass is not MutexValue else None
        if self._folder:
            os.makedirs(self._folder, exist_ok=True)
            _take_room(self._folder)
        self._aside: deque[tuple[_Children[Counter] | _Children[Histogram], Labels, float]] = deque()
        self._under_way = 0
        self._children: list[_Children[Counter] | _Children[Histogram] | _Children[Gauge]] = []
        self._served: frozenset[Served] = frozenset()
        self._versions: set[tuple[str, int]] = set()
        self._requests = self._counter("graft_requests_total", "Requests.", "operation", *_MODEL, "status")
        self._refused = self._counter("graft_requests_refused_total", "Answers that were a problem.", "type")
        self._handovers = self._counter(
            "graft_fast_path_handovers_total", "Plain requests that the ordinary path answered.", "reason"
        )
        self._seconds = self._counter("graft_model_seconds_total", "Of a model's requests.", *_MODEL, "outcome")
        self._request = self._histogram("graft_request_seconds", "A request, until it is sent.", SECONDS, "operation")
        self._queue = self._histogram("graft_queue_seconds", "What a request waited for its run.", SECONDS, *_MODEL)
        self._decode = self._histogram("graft_decode_seconds", "Decoding a request's images.", SECONDS, *_MODEL)
        self._run = self._histogram("graft_run_seconds", "One run of a model.", SECONDS, *_MODEL)
        self._images = self._histogram("graft_batch_images", "Images in one run.", IMAGES, *_MODEL)
        self._score = self._histogram("graft_anomaly_score", "Each image's anomaly score.", SCORES, *_MODEL)
        self._confidence = self._histogram("graft_confidence", "Each image's confidence.", CONFIDENCES, *_MODEL)
        self._loads = self._counter("graft_model_loads_total", "Versions that were tried.", "model", "outcome")
        self._far = self._kept_gauge(
            "graft_drift_discrepancy", "Of latest codes from held-out ones.", "livemax", *_MODEL
        )
        self._chance = self._kept_gauge("graft_drift_p_value", "Of that discrepancy.", "livemin", *_MODEL)
        text = "Population stability index of the latest images."
        self._stability = self._kept_gauge("graft_drift_stability", text, "livemax", *_MODEL, "of")
        self._queued = self._gauge("graft_queue_images", "Images under way: read, and not yet answered.", "livesum")
        self._info = self._gauge("graft_model_info", "A model that is loaded.", "livemax", *Served._fields)
        self._gauge("graft_build_info", "The service.", "livemax", "version").labels(version).set(1)

    @property
    def shared(self) -> bool:
        """Whether other workers may be asked for what is counted here."""
        return self._folder is not None

    def serve(self, models: Iterable[Served]) -> None:
        """What is loaded from now on, all of it: told again whenever that changes. What is not has no series."""
        self.write()  # under the names of those that were loaded
        now = frozenset(models)
        for gone in self._served - now:
            self._info.labels(*gone).set(0)  # from files nothing can be removed: `collect` leaves it out
            if not self._folder:
                self._info.remove(*gone)
        for served in now:
            self._info.labels(*served).set(1)
        before, self._versions = self._versions, {(served.model, served.version) for served in now}
        if not self._folder:
            for model, version in before - self._versions:
                for children in self._children:
                    children.forget(model, version)
        self._served = now

    def tried(self, model: str, outcome: str) -> None:
        """`model` is a name in the models folder; `outcome` is loaded or refused."""
        self._loads[model, outcome].inc()

    def request(self, operation: str, model: str | None, version: int | None, status: int, seconds: float) -> None:
        if operation not in OPERATIONS:
            operation = UNKNOWN
        labels = self._labels(model, version)
        aside = self._aside
        aside.append((self._requests, (operation, *labels, status), 1))
        aside.append((self._seconds, (*labels, "success" if status < 400 else "failure"), seconds))
        aside.append((self._request, (operation,), seconds))
        if len(aside) > _MOST_ASIDE:
            self.write()

    def refused(self, kind: str) -> None:
        """`kind` as a problem's type ends: one of the service's own words."""
        self._refused[(kind,)].inc()

    def handed_over(self, reason: str) -> None:
        """`reason` is one of the fast path's own words."""
        self._handovers[(reason,)].inc()

    def waited(self, model: str | None, version: int | None, seconds: float) -> None:
        self._aside.append((self._queue, self._labels(model, version), seconds))

    def decoded(self, model: str | None, version: int | None, seconds: float) -> None:
        self._aside.append((self._decode, self._labels(model, version), seconds))

    def ran(self, model: str, version: int, images: int, seconds: float) -> None:
        """One run, which may have answered several requests."""
        labels = self._labels(model, version)
        self._aside.append((self._images, labels, images))
        self._aside.append((self._run, labels, seconds))

    def scored(self, model: str, version: int, scores: Iterable[float]) -> None:
        self._finite(self._score, self._labels(model, version), scores)

    def classified(self, model: str, version: int, confidences: Iterable[float]) -> None:
        self._finite(self._confidence, self._labels(model, version), confidences)

    def drifted(
        self, model: str, version: int, discrepancy: float | None, p_value: float | None, **stability: float | None
    ) -> None:
        """What is None stays what it was. `stability` by what it is of."""
        labels = self._labels(model, version)
        if UNKNOWN in labels:  # unloaded meanwhile
            return
        for gauges, value in ((self._far, discrepancy), (self._chance, p_value)):
            if value is not None:
                gauges[labels].set(value)
        for of, value in stability.items():
            if value is not None:
                self._stability[(*labels, of)].set(value)

    def queued(self, images: int) -> None:
        """How many wait now, in this process."""
        self._under_way = images

    def write(self) -> None:
        """What was laid aside, each series once."""
        self._queued.set(self._under_way)
        aside, series = self._aside, defaultdict[tuple[int, Labels], list[float]](list)
        kinds: dict[int, _Children[Counter] | _Children[Histogram]] = {}
        with contextlib.suppress(IndexError):  # the end; another thread may be adding to it, or writing too
            while True:
                children, labels, value = aside.popleft()
                kinds[id(children)] = children
                series[id(children), labels].append(value)
        for (kind, labels), values in series.items():
            child = kinds[kind][labels]
            if isinstance(child, Counter):
                child.inc(sum(values))
            else:
                _observe(child, values)

    def exposition(self) -> bytes:
        """In Prometheus' text format, `CONTENT_TYPE`. Reads files, where there are workers: not for the event loop.

        What other workers have laid aside is not in it yet.
        """
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        self.write()
        if self._folder:
            yield from _of_loaded(MultiProcessCollector(None, self._folder).collect())  # type: ignore[no-untyped-call]
            yield from _processes(_live(self._folder))
        else:
            yield from self._own.collect()
            yield from _processes([os.getpid()])

    def of(self, model: str, version: int) -> list[Sample]:
        """What is counted of one model, of all workers together. Not for the event loop either."""
        wanted = {"model": model, "version": str(version)}.items()
        return [sample for family in self.collect() for sample in family.samples if wanted <= sample.labels.items()]

    def _labels(self, model: str | None, version: int | None) -> Labels:
        return (model, version) if (model, version) in self._versions else (UNKNOWN, UNKNOWN)  # type: ignore[return-value]

    def _finite(self, histograms: _Children[Histogram], labels: Labels, values: Iterable[float]) -> None:
        for value in values:
            if isfinite(value):  # one that is not would spoil the sum for good
                self._aside.append((histograms, labels, value))

    def _counter(self, name: str, text: str, *labels: str) -> _Children[Counter]:
        children = _Children(Counter(name, text, labels, registry=self._own), labels)
        self._children.append(children)
        return children

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> _Children[Histogram]:
        children = _Children(Histogram(name, text, labels, registry=self._own, buckets=buckets), labels)
        self._children.append(children)
        return children

    def _kept_gauge(self, name: str, text: str, of_workers: str, *labels: str) -> _Children[Gauge]:
        children = _Children(self._gauge(name, text, of_workers, *labels), labels)
        self._children.append(children)
        return children

    def _gauge(self, name: str, text: str, of_workers: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._own, multiprocess_mode=of_workers)  # type: ignore[arg-type]


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    """As many calls of `observe` would; by its own parts, for it takes one value at a time."""
    bounds = histogram._upper_bounds
    for bucket, count in Tally(bisect_left(bounds, value) for value in values).items():
        histogram._buckets[bucket].inc(count)
    histogram._sum.inc(sum(values))


@contextlib.contextmanager
def shared_folder() -> Iterator[dict[str, str]]:
    """For the parent of workers: what to add to their environment, so that they count together. Removed at the end."""
    with tempfile.TemporaryDirectory(prefix="graft-metrics-") as folder:
        yield {FOLDER: folder}


def _take_room(folder: str) -> None:
    """Of this process's files as much as some ten versions take: they are mapped, and a process that writes to what a
    full disk has no room for is killed, without a word. An OSError says beforehand that there is none."""
    for kind, size in _ROOM.items():
        path = os.path.join(folder, f"{kind}_{os.getpid()}.db")
        try:
            with open(path, "ab") as file:
                if not file.tell():
                    file.write(bytes(size))
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None  # writing does not say where


def worker_gone(pid: int, folder: str) -> None:
    """For the parent, once for each worker that ended: its gauges vanish, what it counted stays."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def _live(folder: str) -> list[int]:
    """The workers that write there and are not yet told to be gone."""
    found = (re.fullmatch(r"gauge_livemax_(\d+)\.db", name) for name in os.listdir(folder))
    return [int(match[1]) for match in found if match]


def _of_loaded(families: Iterable[Metric]) -> Iterator[Metric]:
    """Without what was counted of versions that no worker has any more: files forget nothing."""
    known = list(families)
    [told] = [family for family in known if family.name == "graft_model_info"]
    told.samples = [sample for sample in told.samples if sample.value]
    loaded = {(UNKNOWN, UNKNOWN)} | {(s.labels["model"], s.labels["version"]) for s in told.samples}
    for family in known:
        family.samples = [
            sample
            for sample in family.samples
            if not {*_MODEL} <= {*sample.labels} or (sample.labels["model"], sample.labels["version"]) in loaded
        ]
        yield family


def _processes(pids: Iterable[int]) -> Iterator[Metric]:
    """Memory, CPU, files and start, as every Prometheus client names them, of all workers together."""
    together: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            before = together.setdefault(family.name, family)
            if before is not family:
                combine = min if family.name in _LEAST else operator.add
                total = combine(before.samples[0].value, family.samples[0].value)
                before.samples = [before.samples[0]._replace(value=total)]
    yield from together.values()
