"""Prometheus metrics. A leaf: imports prometheus_client, app.telemetry.multiprocess and the standard library.

With several workers, a folder holds the values of all (app/telemetry/multiprocess.py). Without one, each Metrics keeps
its values in a registry of its own.
"""

import contextlib
import os
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite, nan
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.values import MutexValue, ValueClass

from app.telemetry.multiprocess import FOLDER, live_workers, process_metrics, reserve_space

__all__ = ["CONTENT_TYPE", "OPERATIONS", "Metrics", "Sample", "Served"]

UNKNOWN = "-"
_ON_IMAGES = {"classify", "encode", "reconstruct", "anomaly", "predict", "decode", "generate", "infer", "embeddings"}
OPERATIONS = frozenset(_ON_IMAGES | {"models", "drift", "healthz", "readyz", "metrics"})
SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SCORES = (-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)  # sums of z-scores
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1)
_MODEL = ("model", "version")
ALARM = "graft_drift_alarm"
_MOST_PENDING = 1000

Kind = TypeVar("Kind", bound=MetricWrapperBase)
Labels = tuple[str | int, ...]


class Served(NamedTuple):
    """A loaded model."""

    model: str
    version: int
    digest: str
    provider: str


class _Children(dict[Labels, Kind], Generic[Kind]):
    """Label values → the metric's child. A cache: looking up a child costs more than incrementing it."""

    def __init__(self, metric: Kind, names: tuple[str, ...]) -> None:
        super().__init__()
        self._metric = metric
        self._at = names.index("model") if "version" in names else None

    def __missing__(self, labels: Labels) -> Kind:
        child = self[labels] = self._metric.labels(*labels)
        return child

    def forget(self, model: str, version: int) -> None:
        for labels in list(self):  # a copy, because other threads may add to it
            if self._at is not None and labels[self._at : self._at + len(_MODEL)] == (model, version):
                del self[labels]
                self._metric.remove(*labels)


class Metrics(Collector):
    """One per app. Label values never come from a client: a model that is not loaded counts as "-".

    Values are first appended to `_pending`. `write` adds them to the metrics: at each scrape, when many are pending,
    and periodically if other workers may be scraped. Incrementing a counter directly costs 0.5 µs and observing 1.5 µs,
    two to three times that with workers; writing a hundred together costs little more than one.
    """

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series, and nobody uses them
        self._own = CollectorRegistry()
        self._folder = os.environ.get(FOLDER) if ValueClass is not MutexValue else None
        if self._folder:
            os.makedirs(self._folder, exist_ok=True)
            reserve_space(self._folder)
        self._pending: deque[tuple[_Children[Counter] | _Children[Histogram], Labels, float]] = deque()
        self._images_queued = 0
        self._children: list[_Children[Counter] | _Children[Histogram] | _Children[Gauge]] = []
        self._served: frozenset[Served] = frozenset()
        self._versions: set[tuple[str, int]] = set()
        self._requests = self._counter("graft_requests_total", "Answered requests.", "operation", *_MODEL, "status")
        self._refused = self._counter("graft_requests_refused_total", "Requests answered with a problem.", "type")
        self._images_refused = self._counter(
            "graft_images_refused_total", "Images of partial requests that were answered with a problem.", "type"
        )
        self._handovers = self._counter(
            "graft_fast_path_handovers_total", "Plain requests that the ordinary path answered.", "reason"
        )
        self._seconds = self._counter(
            "graft_model_seconds_total", "Total duration of a model's requests.", *_MODEL, "outcome"
        )
        self._request = self._histogram(
            "graft_request_seconds", "Duration of a request until its answer is sent.", SECONDS, "operation"
        )
        self._queue = self._histogram("graft_queue_seconds", "A request's wait for its batch.", SECONDS, *_MODEL)
        self._decode = self._histogram("graft_decode_seconds", "Decoding of a request's images.", SECONDS, *_MODEL)
        self._run = self._histogram("graft_run_seconds", "Duration of one batch.", SECONDS, *_MODEL)
        self._images = self._histogram("graft_batch_images", "Images in one batch.", IMAGES, *_MODEL)
        self._score = self._histogram("graft_anomaly_score", "Anomaly score of each image.", SCORES, *_MODEL)
        self._confidence = self._histogram("graft_confidence", "Confidence of each image.", CONFIDENCES, *_MODEL)
        self._loads = self._counter("graft_model_loads_total", "Attempts to load a version.", "model", "outcome")
        self._discrepancy = self._labelled_gauge(
            "graft_drift_discrepancy", "Squared discrepancy of latest from held-out embeddings.", "livemax", *_MODEL
        )
        self._p_value = self._labelled_gauge(
            "graft_drift_p_value", "p-value of graft_drift_discrepancy.", "livemin", *_MODEL
        )
        text = "Population stability index of the latest images."
        self._stability = self._labelled_gauge("graft_drift_stability", text, "livemax", *_MODEL, "of")
        text = "Capital of a gambler who bets that images have left the calibration images; begins with 1."
        self._martingale = self._labelled_gauge("graft_drift_martingale", text, "livemax", *_MODEL)
        self._alarm = self._labelled_gauge(ALARM, "1 once the martingale has raised the alarm.", "livemax", *_MODEL)
        text = "Accuracy estimated without labels; NaN while it is not known."
        self._accuracy = self._labelled_gauge("graft_estimated_accuracy", text, "livemin", *_MODEL)
        self._queued = self._gauge("graft_queue_images", "Images of admitted, unanswered requests.", "livesum")
        self._info = self._gauge("graft_model_info", "1 for each loaded model.", "livemax", *Served._fields)
        self._gauge("graft_build_info", "1; the label is Graft's version.", "livemax", "version").labels(version).set(1)

    @property
    def shared(self) -> bool:
        """Whether other workers may answer a scrape for this one."""
        return self._folder is not None

    def serve(self, models: Iterable[Served]) -> None:
        """Call it with all loaded models whenever they change. Other models have no series."""
        self.write()  # pending values belong to the models that were loaded so far
        now = frozenset(models)
        for removed in self._served - now:
            self._info.labels(*removed).set(0)  # nothing can be removed from the files: `collect` filters zeros
            if not self._folder:
                self._info.remove(*removed)
        for served in now:
            self._info.labels(*served).set(1)
        before, self._versions = self._versions, {(served.model, served.version) for served in now}
        if not self._folder:
            for model, version in before - self._versions:
                for children in self._children:
                    children.forget(model, version)
        self._served = now

    def count_load(self, model: str, outcome: str) -> None:
        """`model` is a name in the models folder; `outcome` is loaded or refused."""
        self._loads[model, outcome].inc()

    def request(self, operation: str, model: str | None, version: int | None, status: int, seconds: float) -> None:
        if operation not in OPERATIONS:
            operation = UNKNOWN
        labels = self._labels(model, version)
        pending = self._pending
        pending.append((self._requests, (operation, *labels, status), 1))
        pending.append((self._seconds, (*labels, "success" if status < 400 else "failure"), seconds))
        pending.append((self._request, (operation,), seconds))
        if len(pending) > _MOST_PENDING:
            self.write()

    def refused(self, kind: str) -> None:
        """`kind` is the last part of the problem's type, such as not-an-image."""
        self._refused[(kind,)].inc()

    def images_refused(self, kinds: Iterable[str]) -> None:
        """Single images of requests that were answered."""
        for kind in kinds:
            self._images_refused[(kind,)].inc()

    def handed_over(self, reason: str) -> None:
        """`reason` is one of the fast path's own words."""
        self._handovers[(reason,)].inc()

    def observe_queue(self, model: str | None, version: int | None, seconds: float) -> None:
        self._pending.append((self._queue, self._labels(model, version), seconds))

    def observe_decoding(self, model: str | None, version: int | None, seconds: float) -> None:
        self._pending.append((self._decode, self._labels(model, version), seconds))

    def observe_batch(self, model: str, version: int, images: int, seconds: float) -> None:
        """One batch, which may hold images of several requests."""
        labels = self._labels(model, version)
        self._pending.append((self._images, labels, images))
        self._pending.append((self._run, labels, seconds))

    def scored(self, model: str, version: int, scores: Iterable[float]) -> None:
        self._finite(self._score, self._labels(model, version), scores)

    def classified(self, model: str, version: int, confidences: Iterable[float]) -> None:
        self._finite(self._confidence, self._labels(model, version), confidences)

    def drifted(
        self, model: str, version: int, discrepancy: float | None, p_value: float | None, **stability: float | None
    ) -> None:
        """None leaves a gauge as it is. `stability`: output → its population stability index."""
        labels = self._labels(model, version)
        if UNKNOWN in labels:  # unloaded meanwhile
            return
        for gauges, value in ((self._discrepancy, discrepancy), (self._p_value, p_value)):
            if value is not None:
                gauges[labels].set(value)
        for output, value in stability.items():
            if value is not None:
                self._stability[(*labels, output)].set(value)

    def watched(self, model: str, version: int, martingale: float, alarm: bool, accuracy: float | None) -> None:
        labels = self._labels(model, version)
        if UNKNOWN in labels:  # unloaded meanwhile
            return
        self._martingale[labels].set(martingale)
        self._alarm[labels].set(alarm)
        self._accuracy[labels].set(nan if accuracy is None else accuracy)

    def queued(self, images: int) -> None:
        """The images that are queued in this process now."""
        self._images_queued = images

    def write(self) -> None:
        """Adds the pending values to the metrics, those of each series together."""
        self._queued.set(self._images_queued)
        pending, series = self._pending, defaultdict[tuple[int, Labels], list[float]](list)
        kinds: dict[int, _Children[Counter] | _Children[Histogram]] = {}
        with contextlib.suppress(IndexError):  # empty; other threads may append or write at the same time
            while True:
                children, labels, value = pending.popleft()
                kinds[id(children)] = children
                series[id(children), labels].append(value)
        for (kind, labels), values in series.items():
            child = kinds[kind][labels]
            if isinstance(child, Counter):
                child.inc(sum(values))
            else:
                _observe(child, values)

    def exposition(self) -> bytes:
        """Prometheus text of `CONTENT_TYPE`. With workers it reads files: do not call it on the event loop.

        Pending values of other workers are not included.
        """
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        self.write()
        if self._folder:
            yield from _of_loaded(MultiProcessCollector(None, self._folder).collect())  # type: ignore[no-untyped-call]
            yield from process_metrics(live_workers(self._folder))
        else:
            yield from self._own.collect()
            yield from process_metrics([os.getpid()])

    def of(self, model: str, version: int) -> list[Sample]:
        """The samples of one model, over all workers. Do not call it on the event loop."""
        wanted = {"model": model, "version": str(version)}.items()
        return [sample for family in self.collect() for sample in family.samples if wanted <= sample.labels.items()]

    def _labels(self, model: str | None, version: int | None) -> Labels:
        return (model, version) if (model, version) in self._versions else (UNKNOWN, UNKNOWN)  # type: ignore[return-value]

    def _finite(self, histograms: _Children[Histogram], labels: Labels, values: Iterable[float]) -> None:
        for value in values:
            if isfinite(value):  # NaN would make the histogram's sum NaN for ever
                self._pending.append((histograms, labels, value))

    def _counter(self, name: str, text: str, *labels: str) -> _Children[Counter]:
        children = _Children(Counter(name, text, labels, registry=self._own), labels)
        self._children.append(children)
        return children

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> _Children[Histogram]:
        children = _Children(Histogram(name, text, labels, registry=self._own, buckets=buckets), labels)
        self._children.append(children)
        return children

    def _labelled_gauge(self, name: str, text: str, mode: str, *labels: str) -> _Children[Gauge]:
        children = _Children(self._gauge(name, text, mode, *labels), labels)
        self._children.append(children)
        return children

    def _gauge(self, name: str, text: str, mode: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._own, multiprocess_mode=mode)  # type: ignore[arg-type]


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    """Equals a call of `observe` per value, which takes one value at a time; so it sets the histogram's parts."""
    bounds = histogram._upper_bounds
    for bucket, count in Tally(bisect_left(bounds, value) for value in values).items():
        histogram._buckets[bucket].inc(count)
    histogram._sum.inc(sum(values))


def _of_loaded(families: Iterable[Metric]) -> Iterator[Metric]:
    """Removes the samples of versions that no worker has loaded: nothing can be removed from the files."""
    families = list(families)
    [info] = [family for family in families if family.name == "graft_model_info"]
    info.samples = [sample for sample in info.samples if sample.value]
    loaded = {(UNKNOWN, UNKNOWN)} | {(s.labels["model"], s.labels["version"]) for s in info.samples}
    for family in families:
        family.samples = [
            sample
            for sample in family.samples
            if not {*_MODEL} <= {*sample.labels} or (sample.labels["model"], sample.labels["version"]) in loaded
        ]
        yield family
