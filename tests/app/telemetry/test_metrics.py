"""The exposition, read by Prometheus' own parser."""

import math
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import ROOT, metric_value, read_metrics, serving

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.settings import Settings
from app.telemetry.metrics import CONTENT_TYPE, Metrics, Served

TINY = Served("tiny", 1, "3f6c", "CPUExecutionProvider")


@pytest.fixture
def metrics() -> Metrics:
    own = Metrics("1.2.3")
    own.serve([TINY])
    return own


def test_requests_are_counted_by_operation_model_and_status(metrics: Metrics) -> None:
    for status in (200, 200, 429):
        metrics.request("classify", "tiny", 1, status, 0.003)
    samples = read_metrics(metrics.exposition())
    of = {"operation": "classify", "model": "tiny", "version": 1}
    assert metric_value(samples, "graft_requests_total", **of, status=200) == 2
    assert metric_value(samples, "graft_requests_total", **of, status=429) == 1
    assert metric_value(samples, "graft_request_seconds_bucket", operation="classify", le=0.0025) == 0
    assert metric_value(samples, "graft_request_seconds_bucket", operation="classify", le=0.005) == 3
    assert metric_value(samples, "graft_request_seconds_sum", operation="classify") == pytest.approx(0.009)


def test_a_run_a_wait_and_a_decoding_fall_into_buckets_from_50_us_to_10_s(metrics: Metrics) -> None:
    metrics.observe_queue("tiny", 1, 40e-6)
    metrics.observe_decoding("tiny", 1, 0.06)
    metrics.observe_batch("tiny", 1, images=3, seconds=9)
    samples = read_metrics(metrics.exposition())
    for name, below, within in (("queue", None, 5e-05), ("decode", 0.05, 0.1), ("run", 5.0, 10.0)):
        of = {"model": "tiny", "version": 1}
        if below is not None:
            assert metric_value(samples, f"graft_{name}_seconds_bucket", **of, le=below) == 0
        assert metric_value(samples, f"graft_{name}_seconds_bucket", **of, le=within) == 1
        assert metric_value(samples, f"graft_{name}_seconds_count", **of) == 1
    assert metric_value(samples, "graft_batch_images_bucket", model="tiny", version=1, le=2.0) == 0
    assert metric_value(samples, "graft_batch_images_bucket", model="tiny", version=1, le=4.0) == 1


def test_scores_and_confidences_are_counted_by_version_without_nan(metrics: Metrics) -> None:
    metrics.serve([TINY, TINY._replace(version=2)])
    metrics.scored("tiny", 1, [-9, 2.5, 31, math.nan, math.inf])
    metrics.scored("tiny", 2, [0])
    metrics.classified("tiny", 1, [0.97])
    samples = read_metrics(metrics.exposition())
    of = {"model": "tiny", "version": 1}
    assert metric_value(samples, "graft_anomaly_score_bucket", **of, le=-4.0) == 1
    assert metric_value(samples, "graft_anomaly_score_bucket", **of, le=3.0) == 2
    assert metric_value(samples, "graft_anomaly_score_bucket", **of, le=30.0) == 2
    assert metric_value(samples, "graft_anomaly_score_count", **of) == 3
    assert metric_value(samples, "graft_anomaly_score_count", model="tiny", version=2) == 1
    assert metric_value(samples, "graft_confidence_bucket", **of, le=0.95) == 0
    assert metric_value(samples, "graft_confidence_bucket", **of, le=0.98) == 1


def test_only_loaded_models_have_an_info(metrics: Metrics) -> None:
    of = TINY._asdict()
    assert metric_value(read_metrics(metrics.exposition()), "graft_model_info", **of) == 1
    newer = TINY._replace(version=2, digest="77aa")
    metrics.serve([newer])
    samples = read_metrics(metrics.exposition())
    assert metric_value(samples, "graft_model_info", **of) is None
    assert metric_value(samples, "graft_model_info", **newer._asdict()) == 1
    metrics.serve([TINY])
    assert metric_value(read_metrics(metrics.exposition()), "graft_model_info", **of) == 1


def test_unknown_models_and_operations_do_not_become_labels(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.request(f"made-up-{number}", f"model-{number}", number, 404, 0.001)
        metrics.observe_queue(f"model-{number}", 1, 0.001)
    metrics.request("classify", "tiny", 7, 404, 0.001)
    text = metrics.exposition().decode()
    assert "made-up" not in text
    assert "model-" not in text
    samples = read_metrics(text)
    unknown = {"model": "-", "version": "-"}
    assert metric_value(samples, "graft_requests_total", operation="-", **unknown, status=404) == 1000
    assert metric_value(samples, "graft_requests_total", operation="classify", **unknown, status=404) == 1
    assert sum(len(kept) for kept in (metrics._requests, metrics._queue)) == 3, "memory grows with what clients send"


def count_everything(metrics: Metrics) -> None:
    metrics.request("classify", "tiny", 1, 200, 0.1)
    metrics.refused("overloaded")
    metrics.images_refused(["not-an-image"])
    metrics.handed_over("error")
    metrics.observe_queue("tiny", 1, 0.1)
    metrics.observe_decoding("tiny", 1, 0.1)
    metrics.observe_batch("tiny", 1, 1, 0.1)
    metrics.scored("tiny", 1, [0.1])
    metrics.classified("tiny", 1, [0.1])
    metrics.count_load("tiny", "loaded")
    metrics.drifted("tiny", 1, 0.01, 0.5, confidence=0.1, anomaly_score=None)
    metrics.watched("tiny", 1, 1.5, alarm=False, accuracy=0.9)


def test_the_series_of_an_unloaded_version_and_their_memory_are_freed(metrics: Metrics) -> None:
    metrics.serve([])
    empty = len(metrics.exposition())
    for round_ in range(3):
        for version in (1, 2):
            metrics.serve([TINY._replace(version=version, digest=f"{round_}")])
            metrics.request("classify", "tiny", version, 200, 0.1)
            metrics.observe_batch("tiny", version, 1, 0.1)
    of = {"operation": "classify", "model": "tiny", "status": 200}
    samples = read_metrics(metrics.exposition())
    assert metric_value(samples, "graft_requests_total", **of, version=1) is None
    assert metric_value(samples, "graft_requests_total", **of, version=2) == 1, "it began anew"
    metrics.serve([])
    assert "tiny" not in metrics.exposition().decode()
    assert len(metrics.exposition()) < empty + 2000, "what has no model is kept"
    metrics.request("classify", "tiny", 2, 200, 0.1)
    nameless = of | {"model": "-"}
    assert metric_value(read_metrics(metrics.exposition()), "graft_requests_total", **nameless, version="-") == 1


def test_process_and_build_are_exposed(metrics: Metrics) -> None:
    samples = read_metrics(metrics.exposition())
    assert metric_value(samples, "graft_build_info", version="1.2.3") == 1
    assert (metric_value(samples, "process_resident_memory_bytes") or 0) > 1e7
    assert (metric_value(samples, "process_cpu_seconds_total") or 0) > 0
    assert (metric_value(samples, "process_start_time_seconds") or 0) > 1e9


def test_two_apps_in_one_process_count_separately() -> None:
    one, other = Metrics("1"), Metrics("1")
    one.refused("overloaded")
    one.queued(5)
    assert metric_value(read_metrics(one.exposition()), "graft_requests_refused_total", type="overloaded") == 1
    assert metric_value(read_metrics(other.exposition()), "graft_requests_refused_total", type="overloaded") is None
    assert metric_value(read_metrics(other.exposition()), "graft_queue_images") == 0


def test_the_service_exposes_its_counts_with_prometheus_content_type(models: Path) -> None:
    with serving(Settings(models=models)) as client:
        client.post("/v1/classify", files={"image": png(garment("bag"))}).raise_for_status()
        client.post("/v1/classify", files={"image": b"no image"})
        client.post("/v1/classify?model=%1B", files={"image": png(garment("bag"))})
        client.get("/v1/classify")
        client.get("/nowhere")
        client.get("/healthz")
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    samples = read_metrics(answer.text)
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
        assert metric_value(samples, "graft_requests_refused_total", type=kind) == 1
    [info] = [dict(pairs) for name, pairs in samples if name == "graft_model_info"]
    assert (info["model"], info["version"], len(info["digest"])) == ("tiny", "1", 64)


def test_the_page_names_every_metric_with_its_kind_and_labels(metrics: Metrics) -> None:
    count_everything(metrics)
    output = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        name = family.name + "_total" * (family.type == "counter")
        output[name] = (family.type, frozenset(labels))
    page = (ROOT / "docs/observability.md").read_text()
    rows = re.findall(r"^\| `(graft_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    documented = {name: (kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert documented == {name: of for name, of in output.items() if name.startswith("graft_")}
