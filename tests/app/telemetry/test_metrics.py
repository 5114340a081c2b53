"""What Prometheus would read, read with Prometheus' own parser."""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import ROOT, save_tiny, serving

import app
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.settings import Settings
from app.telemetry.metrics import CONTENT_TYPE, Metrics, Served, shared_folder, worker_gone

TINY = Served("tiny", 1, "3f6c", "CPUExecutionProvider")
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def read(exposition: str | bytes) -> Samples:
    """(name, labels) → value"""
    text = exposition if isinstance(exposition, str) else exposition.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "a series that is there twice"
    return found


def value(samples: Samples, name: str, **labels: object) -> float | None:
    return samples.get((name, frozenset((key, str(v)) for key, v in labels.items())))


@pytest.fixture
def metrics() -> Metrics:
    own = Metrics("1.2.3")
    own.serve([TINY])
    return own


def test_requests_are_counted_by_operation_model_and_status(metrics: Metrics) -> None:
    for status in (200, 200, 429):
        metrics.request("classify", "tiny", 1, status, 0.003)
    samples = read(metrics.exposition())
    of = {"operation": "classify", "model": "tiny", "version": 1}
    assert value(samples, "graft_requests_total", **of, status=200) == 2
    assert value(samples, "graft_requests_total", **of, status=429) == 1
    assert value(samples, "graft_request_seconds_bucket", operation="classify", le=0.0025) == 0
    assert value(samples, "graft_request_seconds_bucket", operation="classify", le=0.005) == 3
    assert value(samples, "graft_request_seconds_sum", operation="classify") == pytest.approx(0.009)


def test_a_run_a_wait_and_a_decoding_fall_into_buckets_from_50_us_to_10_s(metrics: Metrics) -> None:
    metrics.waited("tiny", 1, 40e-6)
    metrics.decoded("tiny", 1, 0.06)
    metrics.ran("tiny", 1, images=3, seconds=9)
    samples = read(metrics.exposition())
    for name, below, within in (("queue", None, 5e-05), ("decode", 0.05, 0.1), ("run", 5.0, 10.0)):
        of = {"model": "tiny", "version": 1}
        if below is not None:
            assert value(samples, f"graft_{name}_seconds_bucket", **of, le=below) == 0
        assert value(samples, f"graft_{name}_seconds_bucket", **of, le=within) == 1
        assert value(samples, f"graft_{name}_seconds_count", **of) == 1
    assert value(samples, "graft_batch_images_bucket", model="tiny", version=1, le=2.0) == 0
    assert value(samples, "graft_batch_images_bucket", model="tiny", version=1, le=4.0) == 1


def test_scores_and_confidences_are_kept_apart_by_version_and_what_is_no_number_is_left_out(metrics: Metrics) -> None:
    metrics.serve([TINY, TINY._replace(version=2)])
    metrics.scored("tiny", 1, [-9, 2.5, 31, math.nan, math.inf])
    metrics.scored("tiny", 2, [0])
    metrics.classified("tiny", 1, [0.97])
    samples = read(metrics.exposition())
    of = {"model": "tiny", "version": 1}
    assert value(samples, "graft_anomaly_score_bucket", **of, le=-4.0) == 1
    assert value(samples, "graft_anomaly_score_bucket", **of, le=3.0) == 2
    assert value(samples, "graft_anomaly_score_bucket", **of, le=30.0) == 2
    assert value(samples, "graft_anomaly_score_count", **of) == 3
    assert value(samples, "graft_anomaly_score_count", model="tiny", version=2) == 1
    assert value(samples, "graft_confidence_bucket", **of, le=0.95) == 0
    assert value(samples, "graft_confidence_bucket", **of, le=0.98) == 1


def test_only_what_is_loaded_now_has_an_info(metrics: Metrics) -> None:
    of = TINY._asdict()
    assert value(read(metrics.exposition()), "graft_model_info", **of) == 1
    newer = TINY._replace(version=2, digest="77aa")
    metrics.serve([newer])
    samples = read(metrics.exposition())
    assert value(samples, "graft_model_info", **of) is None
    assert value(samples, "graft_model_info", **newer._asdict()) == 1
    metrics.serve([TINY])
    assert value(read(metrics.exposition()), "graft_model_info", **of) == 1


def test_what_was_never_loaded_and_what_is_no_operation_never_become_labels(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.request(f"made-up-{number}", f"model-{number}", number, 404, 0.001)
        metrics.waited(f"model-{number}", 1, 0.001)
    metrics.request("classify", "tiny", 7, 404, 0.001)
    text = metrics.exposition().decode()
    assert "made-up" not in text
    assert "model-" not in text
    samples = read(text)
    unknown = {"model": "-", "version": "-"}
    assert value(samples, "graft_requests_total", operation="-", **unknown, status=404) == 1000
    assert value(samples, "graft_requests_total", operation="classify", **unknown, status=404) == 1
    assert sum(len(kept) for kept in (metrics._requests, metrics._queue)) == 3, "memory grows with what clients send"


def count_everything(metrics: Metrics) -> None:
    metrics.request("classify", "tiny", 1, 200, 0.1)
    metrics.refused("overloaded")
    metrics.handed_over("error")
    metrics.waited("tiny", 1, 0.1)
    metrics.decoded("tiny", 1, 0.1)
    metrics.ran("tiny", 1, 1, 0.1)
    metrics.scored("tiny", 1, [0.1])
    metrics.classified("tiny", 1, [0.1])
    metrics.tried("tiny", "loaded")
    metrics.drifted("tiny", 1, 0.01, 0.5, confidence=0.1, anomaly_score=None)


def test_what_was_counted_of_a_version_goes_with_it_and_memory_does_too(metrics: Metrics) -> None:
    metrics.serve([])
    empty = len(metrics.exposition())
    for round_ in range(3):
        for version in (1, 2):
            metrics.serve([TINY._replace(version=version, digest=f"{round_}")])
            metrics.request("classify", "tiny", version, 200, 0.1)
            metrics.ran("tiny", version, 1, 0.1)
    of = {"operation": "classify", "model": "tiny", "status": 200}
    samples = read(metrics.exposition())
    assert value(samples, "graft_requests_total", **of, version=1) is None
    assert value(samples, "graft_requests_total", **of, version=2) == 1, "it began anew"
    metrics.serve([])
    assert "tiny" not in metrics.exposition().decode()
    assert len(metrics.exposition()) < empty + 2000, "what has no model is kept"
    metrics.request("classify", "tiny", 2, 200, 0.1)
    nameless = of | {"model": "-"}
    assert value(read(metrics.exposition()), "graft_requests_total", **nameless, version="-") == 1


def test_the_process_and_the_build_are_told(metrics: Metrics) -> None:
    samples = read(metrics.exposition())
    assert value(samples, "graft_build_info", version="1.2.3") == 1
    assert (value(samples, "process_resident_memory_bytes") or 0) > 1e7
    assert (value(samples, "process_cpu_seconds_total") or 0) > 0
    assert (value(samples, "process_start_time_seconds") or 0) > 1e9


def test_two_apps_in_one_process_count_apart() -> None:
    one, other = Metrics("1"), Metrics("1")
    one.refused("overloaded")
    one.queued(5)
    assert value(read(one.exposition()), "graft_requests_refused_total", type="overloaded") == 1
    assert value(read(other.exposition()), "graft_requests_refused_total", type="overloaded") is None
    assert value(read(other.exposition()), "graft_queue_images") == 0


def test_the_service_tells_what_it_did_in_prometheus_own_type(models: Path) -> None:
    with serving(Settings(models=models)) as client:
        client.post("/v1/classify", files={"image": png(garment("bag"))}).raise_for_status()
        client.post("/v1/classify", files={"image": b"no image"})
        client.post("/v1/classify?model=%1B", files={"image": png(garment("bag"))})
        client.get("/v1/classify")
        client.get("/nowhere")
        client.get("/healthz")
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    samples = read(answer.text)
    counted = {
        (labels["operation"], labels["status"]): count
        for (name, pairs), count in samples.items()
        if name == "graft_requests_total" and (labels := dict(pairs))
    }
    assert counted == {
        **{("classify", status): 1 for status in ("200", "404", "405", "415")},
        ("-", "404"): 1,
        ("healthz", "200"): 1,
    }
    for kind in ("not-an-image", "unknown-model", "method-not-allowed", "not-found"):
        assert value(samples, "graft_requests_refused_total", type=kind) == 1
    [info] = [dict(pairs) for name, pairs in samples if name == "graft_model_info"]
    assert (info["model"], info["version"], len(info["digest"])) == ("tiny", "1", 64)


def test_the_page_names_every_metric_with_its_kind_and_labels(metrics: Metrics) -> None:
    count_everything(metrics)
    told = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        name = family.name + "_total" * (family.type == "counter")
        told[name] = (family.type, frozenset(labels))
    page = (ROOT / "docs/observability.md").read_text()
    rows = re.findall(r"^\| `(graft_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    documented = {name: (kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert documented == {name: of for name, of in told.items() if name.startswith("graft_")}


WORKER = """
import sys
from app.telemetry.metrics import Metrics, Served
metrics = Metrics("1.2.3")
metrics.serve([Served("tiny", 1, "3f6c", "CPUExecutionProvider")])
for line in sys.stdin:  # an expression that calls metrics, or shows what they say
    eval(line)
    metrics.write()  # as the service does again and again
    print("done", flush=True)
"""


class Worker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.pid = process, process.pid

    def does(self, expression: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        print(expression, file=self._process.stdin, flush=True)
        return "".join(iter(self._process.stdout.readline, "done\n"))

    def samples(self) -> Samples:
        return read(self.does("print(metrics.exposition().decode())"))

    def dies(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def workers(count: int, shared: dict[str, str]) -> Iterator[list[Worker]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(app.__file__).parents[1]), **shared}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        yield [Worker(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=20)


def test_whichever_worker_is_asked_tells_of_all() -> None:
    with shared_folder() as shared, workers(2, shared) as (one, other):
        one.does("metrics.request('classify', 'tiny', 1, 200, 0.001)")
        other.does("[metrics.request('classify', 'tiny', 1, 200, 0.001) for _ in range(4)]")
        one.does("metrics.ran('tiny', 1, 8, 0.02), metrics.queued(3), metrics.refused('overloaded')")
        other.does("metrics.handed_over('error'), metrics.handed_over('late')")
        one.does("metrics.handed_over('error')")
        other.does("metrics.ran('tiny', 1, 2, 0.02), metrics.queued(4), metrics.scored('tiny', 1, [-1.5])")
        for asked in (one, other):
            samples = asked.samples()
            of = {"model": "tiny", "version": 1}
            assert value(samples, "graft_requests_total", operation="classify", **of, status=200) == 5
            assert value(samples, "graft_batch_images_count", **of) == 2
            assert value(samples, "graft_batch_images_sum", **of) == 10
            assert value(samples, "graft_run_seconds_bucket", **of, le=0.025) == 2
            assert value(samples, "graft_anomaly_score_bucket", **of, le=-1.0) == 1
            assert value(samples, "graft_requests_refused_total", type="overloaded") == 1
            assert value(samples, "graft_fast_path_handovers_total", reason="error") == 2
            assert value(samples, "graft_fast_path_handovers_total", reason="late") == 1
            assert value(samples, "graft_queue_images") == 7
            assert value(samples, "graft_model_info", **TINY._asdict()) == 1
            assert value(samples, "graft_build_info", version="1.2.3") == 1
            assert (value(samples, "process_resident_memory_bytes") or 0) > 2e7


def test_what_no_worker_has_any_more_is_not_told() -> None:
    with shared_folder() as shared, workers(2, shared) as both:
        of = {"operation": "classify", "model": "tiny", "status": 200}
        for worker in both:
            worker.does("metrics.request('classify', 'tiny', 1, 200, 0.001), metrics.tried('tiny', 'refused')")
        second = TINY._replace(version=2)
        for worker, counted in zip(both, (2, None), strict=True):
            worker.does(f"metrics.serve([Served{tuple(second)!r}]), metrics.request('classify', 'tiny', 2, 200, 0.1)")
            samples = both[0].samples()
            assert value(samples, "graft_requests_total", **of, version=1) == counted, "one still has it"
        assert value(samples, "graft_requests_total", **of, version=2) == 2
        assert value(samples, "graft_model_info", **TINY._asdict()) is None
        assert value(samples, "graft_model_loads_total", model="tiny", outcome="refused") == 2
        assert value(samples, "graft_build_info", version="1.2.3") == 1


def test_a_dead_workers_gauges_vanish_and_what_it_counted_stays() -> None:
    with shared_folder() as shared, workers(2, shared) as (one, other):
        [folder] = shared.values()
        other_model = TINY._replace(model="other")
        one.does("metrics.queued(3), metrics.refused('overloaded')")
        other.does("metrics.handed_over('error'), metrics.handed_over('late')")
        one.does("metrics.handed_over('error')")
        other.does(f"metrics.queued(4), metrics.refused('overloaded'), metrics.serve([Served{tuple(other_model)!r}])")
        both = one.samples()
        assert value(both, "graft_queue_images") == 7
        assert value(both, "graft_model_info", **other_model._asdict()) == 1
        other.dies()
        worker_gone(other.pid, folder)
        left = one.samples()
        assert value(left, "graft_queue_images") == 3
        assert value(left, "graft_model_info", **TINY._asdict()) == 1
        assert value(left, "graft_model_info", **other_model._asdict()) is None
        assert value(left, "graft_requests_refused_total", type="overloaded") == 2
        memory = "process_resident_memory_bytes"
        assert (value(left, memory) or 0) < (value(both, memory) or 0) * 0.75
        worker_gone(other.pid, folder)  # being told twice does no harm
    assert not Path(folder).exists()


def test_two_services_that_share_a_folder_answer_as_one(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    environment = {name: v for name, v in os.environ.items() if not name.startswith("GRAFT_")}
    root = str(Path(app.__file__).parents[1])
    with shared_folder() as shared:
        command = [sys.executable, "-m", "app", "--port", "0", "--models", str(tmp_path)]
        services = [
            subprocess.Popen(
                command, env={**environment, "PYTHONPATH": root, **shared}, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        try:
            urls = [(service.stdout.readline() if service.stdout else "").split()[-1] for service in services]
            for url in (urls[0], urls[1], urls[1]):
                httpx.get(f"{url}/healthz").raise_for_status()
            answered = {"operation": "healthz", "model": "-", "version": "-", "status": 200}
            time.sleep(1)  # what one has counted, the other knows a little later
            assert value(read(httpx.get(f"{urls[0]}/metrics").text), "graft_requests_total", **answered) == 3
        finally:
            for service in services:
                service.terminate()
                service.communicate(timeout=20)
