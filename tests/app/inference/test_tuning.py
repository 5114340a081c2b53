import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from support import save_tiny, serving

from app.bundle.bundle import Bundle
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.bundle.manifest import Graph
from app.bundle.session import CPU, Execution, Session
from app.bundle.store import load
from app.errors import BundleError
from app.inference.tuning import Stopped, Trial, open_session, tune
from app.main import threads_to_try
from app.settings import Settings


def no_pause(_: float) -> None: ...


def tuned(
    bundle: Bundle, folder: Path, threads: Sequence[int] = (1, 2), open_session: Callable = open_session
) -> list[Trial]:
    found = tune(bundle, folder, threads, no_pause, lambda: CPU, open_session)
    return [trial for trials in found for trial in trials]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path)


def test_every_graph_is_tried_in_several_ways_and_runs_in_one(folder: Path) -> None:
    bundle = load(folder, threads=2)
    images = np.random.default_rng(0).integers(0, 256, (3, *bundle.manifest.input.shape), np.uint8)
    before = bundle.run_all(images)
    trials = tuned(bundle, folder)
    for graph in ("encoder", "decoder", "head"):
        ways = [trial for trial in trials if trial.graph == graph]
        assert {trial.execution.threads for trial in ways} == {1, 2}
        assert {trial.execution.level for trial in ways} == {"all", "extended", "basic"}
        assert [trial.chosen for trial in ways].count(True) == 1
        assert all(trial.one_s and trial.several_s and trial.problem is None for trial in ways)
    assert bundle.encoder.execution == next(trial.execution for trial in trials if trial.chosen)
    after = bundle.run_all(images)
    assert all(np.allclose(after[name], before[name], rtol=0, atol=1e-4) for name in before)


class _Instant(Session):
    """Gives what it was made with, in no time."""

    def __init__(self, execution: Execution, outputs: dict[str, np.ndarray], session: Session) -> None:
        self.execution, self._given, self._session = execution, outputs, session._session

    def run(self, batch: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return self._given


@pytest.mark.parametrize("off", [0.0, 1.0, float("nan")])
def test_the_fastest_way_is_taken_if_it_agrees(off: float, folder: Path) -> None:
    bundle = load(folder, threads=1)
    pixels = np.load(folder / "golden.npz")["pixels"]
    taken = np.resize(pixels, (16, *pixels.shape[1:]))

    def in_no_time_at_two(model: bytes, graph: Graph, where: str, execution: Execution) -> Session:
        session = open_session(model, graph, where, execution)
        if execution.threads == 1 or graph.file != "encoder.onnx":
            return session
        return _Instant(execution, {name: values + off for name, values in session.run(taken).items()}, session)

    trials = [each for each in tuned(bundle, folder, (1, 2), in_no_time_at_two) if each.graph == "encoder"]
    in_two = next(trial for trial in trials if trial.execution == Execution(CPU, 2))
    if off == 0:
        assert in_two.problem is None
        assert bundle.encoder.execution.threads == 2
    else:
        assert in_two.problem is not None
        assert "is off by" in in_two.problem
        assert bundle.encoder.execution.threads == 1


def test_a_way_that_does_not_start_is_told(folder: Path) -> None:
    found = tune(load(folder, threads=1), folder, (1,), no_pause, lambda: ["OpenVINOExecutionProvider"])
    [by_openvino] = [each for each in next(found) if each.execution.providers != CPU]
    assert by_openvino.problem is not None or by_openvino.one_s  # as this onnxruntime lacks it, or has it


def test_a_folder_with_another_graph_is_refused(folder: Path) -> None:
    bundle = load(folder, threads=1)
    encoder = folder / bundle.manifest.graphs.encoder.file
    encoder.write_bytes(encoder.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="no longer the one that was loaded"):
        tuned(bundle, folder)
    shutil.rmtree(folder)
    with pytest.raises(BundleError, match="missing"):
        tuned(bundle, folder)


def test_it_stops_between_two_runs(folder: Path) -> None:
    def stop(_: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        next(tune(load(folder, threads=1), folder, (1, 2), stop))


def test_no_more_threads_are_tried_than_the_worker_has() -> None:
    assert threads_to_try(Settings(tune="on"), 1) == [1]
    assert threads_to_try(Settings(tune="on"), 6) == [1, 2, 4, 6]
    assert threads_to_try(Settings(tune="on", threads=3), 3) == [3]
    assert threads_to_try(Settings(tune="off"), 6) == []


def test_a_served_model_shows_what_was_tried_and_answers_as_before(models: Path) -> None:
    def ask(client: httpx.Client) -> dict:
        answer = client.post("/v1/predict", files={"image": png(garment("bag"))})
        assert answer.status_code == 200
        return answer.json()["results"][0]

    with serving(Settings(models=models, tune="on", threads=1)) as client:
        before = ask(client)
        for _ in range(600):
            tuning = client.get("/v1/models/tiny").json()["tuning"]
            if tuning["state"] in ("done", "failed"):
                break
            time.sleep(0.1)
        assert tuning["state"] == "done"
        assert {trial["graph"] for trial in tuning["trials"]} >= {"encoder", "decoder", "head"}
        after = ask(client)
        assert after["embedding"] == pytest.approx(before["embedding"], abs=1e-4)
        assert after["label"] == before["label"]
    with serving(Settings(models=models, tune="off")) as client:
        assert client.get("/v1/models/tiny").json()["tuning"] == {"state": "off", "problem": None, "trials": []}
