"""Metrics of several workers, each a real process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from support import Samples, metric_value, read_metrics, save_tiny

import app
from app.telemetry.metrics import Served
from app.telemetry.multiprocess import shared_folder, worker_gone

TINY = Served("tiny", 1, "3f6c", "CPUExecutionProvider")


WORKER = """
import sys
from app.telemetry.metrics import Metrics, Served
metrics = Metrics("1.2.3")
metrics.serve([Served("tiny", 1, "3f6c", "CPUExecutionProvider")])
for line in sys.stdin:  # an expression that changes or prints metrics
    eval(line)
    metrics.write()  # as the service does periodically
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
        return read_metrics(self.does("print(metrics.exposition().decode())"))

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


def test_each_worker_exposes_the_sums_of_all() -> None:
    with shared_folder() as shared, workers(2, shared) as (one, other):
        one.does("metrics.request('classify', 'tiny', 1, 200, 0.001)")
        other.does("[metrics.request('classify', 'tiny', 1, 200, 0.001) for _ in range(4)]")
        one.does("metrics.observe_batch('tiny', 1, 8, 0.02), metrics.queued(3), metrics.refused('overloaded')")
        other.does("metrics.handed_over('error'), metrics.handed_over('late')")
        one.does("metrics.handed_over('error')")
        other.does("metrics.observe_batch('tiny', 1, 2, 0.02), metrics.queued(4), metrics.scored('tiny', 1, [-1.5])")
        for requested in (one, other):
            samples = requested.samples()
            of = {"model": "tiny", "version": 1}
            assert metric_value(samples, "graft_requests_total", operation="classify", **of, status=200) == 5
            assert metric_value(samples, "graft_batch_images_count", **of) == 2
            assert metric_value(samples, "graft_batch_images_sum", **of) == 10
            assert metric_value(samples, "graft_run_seconds_bucket", **of, le=0.025) == 2
            assert metric_value(samples, "graft_anomaly_score_bucket", **of, le=-1.0) == 1
            assert metric_value(samples, "graft_requests_refused_total", type="overloaded") == 1
            assert metric_value(samples, "graft_fast_path_handovers_total", reason="error") == 2
            assert metric_value(samples, "graft_fast_path_handovers_total", reason="late") == 1
            assert metric_value(samples, "graft_queue_images") == 7
            assert metric_value(samples, "graft_model_info", **TINY._asdict()) == 1
            assert metric_value(samples, "graft_build_info", version="1.2.3") == 1
            assert (metric_value(samples, "process_resident_memory_bytes") or 0) > 2e7


def test_versions_that_no_worker_has_loaded_have_no_series() -> None:
    with shared_folder() as shared, workers(2, shared) as both:
        of = {"operation": "classify", "model": "tiny", "status": 200}
        for worker in both:
            worker.does("metrics.request('classify', 'tiny', 1, 200, 0.001), metrics.count_load('tiny', 'refused')")
        second = TINY._replace(version=2)
        for worker, counted in zip(both, (2, None), strict=True):
            worker.does(f"metrics.serve([Served{tuple(second)!r}]), metrics.request('classify', 'tiny', 2, 200, 0.1)")
            samples = both[0].samples()
            assert metric_value(samples, "graft_requests_total", **of, version=1) == counted, "one still has it"
        assert metric_value(samples, "graft_requests_total", **of, version=2) == 2
        assert metric_value(samples, "graft_model_info", **TINY._asdict()) is None
        assert metric_value(samples, "graft_model_loads_total", model="tiny", outcome="refused") == 2
        assert metric_value(samples, "graft_build_info", version="1.2.3") == 1


def test_gauges_of_a_dead_worker_vanish_and_its_counts_stay() -> None:
    with shared_folder() as shared, workers(2, shared) as (one, other):
        [folder] = shared.values()
        other_model = TINY._replace(model="other")
        one.does("metrics.queued(3), metrics.refused('overloaded')")
        other.does("metrics.handed_over('error'), metrics.handed_over('late')")
        one.does("metrics.handed_over('error')")
        other.does(f"metrics.queued(4), metrics.refused('overloaded'), metrics.serve([Served{tuple(other_model)!r}])")
        both = one.samples()
        assert metric_value(both, "graft_queue_images") == 7
        assert metric_value(both, "graft_model_info", **other_model._asdict()) == 1
        other.dies()
        worker_gone(other.pid, folder)
        left = one.samples()
        assert metric_value(left, "graft_queue_images") == 3
        assert metric_value(left, "graft_model_info", **TINY._asdict()) == 1
        assert metric_value(left, "graft_model_info", **other_model._asdict()) is None
        assert metric_value(left, "graft_requests_refused_total", type="overloaded") == 2
        memory = "process_resident_memory_bytes"
        assert (metric_value(left, memory) or 0) < (metric_value(both, memory) or 0) * 0.75
        worker_gone(other.pid, folder)  # a second call does no harm
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
            time.sleep(1)  # until each sees the counts of the other
            assert (
                metric_value(read_metrics(httpx.get(f"{urls[0]}/metrics").text), "graft_requests_total", **answered)
                == 3
            )
        finally:
            for service in services:
                service.terminate()
                service.communicate(timeout=20)
