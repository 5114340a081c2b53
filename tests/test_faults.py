"""Faults on purpose: graphs that raise, give what is no number or hang, bundles that cannot be read, too many requests,
a worker that is killed. Each costs whom it concerns a clear refusal, and nobody else anything."""

import asyncio
import contextlib
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from load import Answer, Load, post
from onnx import TensorProto, helper
from PIL import Image
from support import (
    LATENT,
    assert_error,
    assert_problem,
    eventually,
    onnx_file,
    running,
    save_tiny,
    serving,
    spec,
    stopped,
    tiny,
)

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.bundle.store import save
from app.inference.answer import OutputRequest, Outputs, answer
from app.inference.batcher import Batcher
from app.main import create_app
from app.settings import Settings

GOOD = png(garment("bag"))
WHITE = png(Image.new("L", (4, 6), 255))  # at which the graphs below go wrong
RAW = {"content-type": "image/png"}
OPERATIONS = ("classify", "encode", "reconstruct", "anomaly", "predict")


def version_of(address: str) -> int:
    answer = httpx.post(f"{address}/v1/classify", content=GOOD, headers=RAW)
    assert answer.status_code == 200, answer.text
    version: int = answer.json()["model"]["version"]
    return version


def save_faulty(models: Path, fault: str) -> None:
    """A bundle whose encoder does well by every image but a white one."""
    fields, files = tiny()
    encoder = fields["graphs"].encoder
    size = int(np.prod(spec().shape))
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"]),
        helper.make_node("MatMul", ["flat", "into"], ["code"]),
        helper.make_node("ReduceMin", ["flat", "across"], ["darkest"], keepdims=1),
        helper.make_node("Floor", ["darkest"], ["white"]),  # 0, or 1
    ]
    weights = {
        "into": np.random.default_rng(0).normal(size=(size, LATENT)).astype(np.float32),
        "full": np.float32(255),
        "across": np.array([1]),
    }
    if fault == "raises":
        nodes += [
            helper.make_node("Mul", ["white", "nine"], ["place"]),
            helper.make_node("Cast", ["place"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["one", "index"], ["odd"], axis=0),  # of one value the tenth
        ]
        weights |= {"nine": np.float32(9), "one": np.zeros(1, np.float32)}
    else:
        top = 0.0 if fault == "not a number" else 1.0
        nodes += [
            helper.make_node("Sub", ["one", "white"], ["below"]),
            helper.make_node("Div", ["top", "below"], ["large"]),
            helper.make_node("Sub", ["large", "top"], ["odd"]),
        ]
        weights |= {"one": np.float32(1), "top": np.float32(top)}
    nodes.append(helper.make_node("Add", ["code", "odd"], ["embedding"]))
    files["encoder.onnx"] = onnx_file(nodes, encoder.input, encoder.outputs[0], weights)
    save(models, "faulty", fields, files)


@pytest.mark.parametrize(
    ("fault", "kind", "answer_text"),
    [
        ("raises", "internal-server-error", "unexpected"),
        ("not a number", "not-finite", "model faulty@1 returned embedding that is not finite"),
        ("infinite", "not-finite", "model faulty@1 returned embedding that is not finite"),
    ],
)
def test_what_a_graph_does_to_one_image_is_a_500_to_that_image_alone(
    tmp_path: Path, fault: str, kind: str, answer_text: str
) -> None:
    save_faulty(tmp_path, fault)
    seen: Counter[tuple[int, int]] = Counter()

    def on_answer(which: int, answer: Answer) -> None:
        seen[which, answer.status] += 1

    with running(GRAFT_MODELS=str(tmp_path)) as (process, address, _):
        assert process.stderr is not None
        log: list[str] = []
        reader = threading.Thread(target=log.extend, args=(process.stderr,))  # or a full pipe would hold the service
        reader.start()
        with httpx.Client(base_url=address) as client:
            for operation in OPERATIONS:
                assert_problem(client.post(f"/v1/{operation}", content=WHITE, headers=RAW), 500, kind)
                assert client.post(f"/v1/{operation}", content=GOOD, headers=RAW).status_code == 200
            pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 6, 4, 1], "data": [255] * 24}
            assert_error(client.post("/v2/models/faulty/infer", json={"inputs": [pixels]}), 500)

            async def together() -> None:  # in the same batches
                load = Load(
                    address, [post("/v1/classify", file, "image/png") for file in (GOOD, WHITE)], on_answer=on_answer
                )
                loading = asyncio.create_task(load.run())
                await asyncio.sleep(1)
                load.stopped = True
                await loading
                assert load.lost == []

            asyncio.run(together())
            assert set(seen) == {(0, 200), (1, 500)}
            assert client.get("/readyz").status_code == 200
            counted = re.search(rf'graft_requests_refused_total{{type="{kind}"}} (\d+)', client.get("/metrics").text)
            assert counted
            assert int(counted[1]) == seen[1, 500] + len(OPERATIONS) + 1
            print(f"{seen[0, 200]:,} answered beside {seen[1, 500]:,} that failed")
        process.terminate()
        reader.join()
    assert any(answer_text in line for line in log)


def test_a_file_for_which_a_graph_gives_no_number_is_a_problem_beside_the_others_rows(tmp_path: Path) -> None:
    save_faulty(tmp_path / "models", "not a number")
    (tmp_path / "images").mkdir()
    for name, file in (("a.png", GOOD), ("b.png", WHITE), ("c.png", GOOD)):
        (tmp_path / "images" / name).write_bytes(file)
    out = tmp_path / "rows.csv"
    done = stopped("score", str(tmp_path / "images"), "--out", str(out), GRAFT_MODELS=str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\w)\.png", out.read_text()) == ["a", "c"]
    answer_text = (tmp_path / "rows.csv.errors.csv").read_text()
    assert re.findall(r"(\w)\.png,not-finite,model faulty@1 returned embedding that is not finite", answer_text) == [
        "b"
    ]


def test_a_graph_that_hangs_is_504_in_time_and_others_are_answered(tmp_path: Path) -> None:
    """It holds the only thread there is for graphs."""
    for name in ("other", "stuck"):
        save_tiny(tmp_path, name)
    settings = Settings(models=tmp_path, threads=1, max_queue=8, max_images=8)
    app, gate = create_app(settings), threading.Event()
    with serving(settings, app) as client, ThreadPoolExecutor(8) as callers:
        model = app.state.predictor.repository.get("stuck")

        def run(wishes: Sequence[OutputRequest]) -> list[Outputs]:
            gate.wait(60)
            return answer(model.bundle, wishes)

        model.batcher = Batcher(run, most=32, pool=app.state.repository._pool)

        def ask(name: str, patience: str = "300") -> httpx.Response:
            headers = {**RAW, "X-Timeout-Ms": patience}
            return client.post(f"/v1/classify?model={name}", content=GOOD, headers=headers, timeout=60)

        try:
            start = time.monotonic()
            late = list(callers.map(ask, ["stuck"] * 8))
            assert time.monotonic() - start < 5
            for each in late:
                assert_problem(each, 504, "deadline-passed")
            for path in ("/healthz", "/readyz", "/metrics"):
                assert client.get(path).status_code == 200
            assert ask("other", "5000").status_code == 200
            assert_problem(ask("stuck"), 504, "deadline-passed")  # those that are late take no room in the queue
        finally:
            gate.set()
        assert ask("stuck", "20000").status_code == 200
        assert app.state.predictor.admission.images == 0


def test_a_flood_is_429_for_some_and_then_it_is_over(models: Path) -> None:
    statuses: Counter[int] = Counter()

    async def flood(load: Load) -> None:
        loading = asyncio.create_task(load.run())
        await asyncio.sleep(2)
        load.stopped = True
        await loading

    settings = {"GRAFT_MODELS": str(models), "GRAFT_MAX_QUEUE": "8", "GRAFT_MAX_IMAGES": "8"}
    with running(GRAFT_LOG_REQUESTS="none", **settings) as (_, address, _):
        load = Load(
            address,
            [post("/v1/predict", GOOD, "image/png")],
            clients=64,
            on_answer=lambda _, answer: statuses.update([answer.status]),
        )
        asyncio.run(flood(load))
        assert load.lost == []
        assert set(statuses) == {200, 429}
        version_of(address)
        assert "graft_queue_images 0.0" in httpx.get(f"{address}/metrics").text


def spoil_by_a_byte(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def spoil_by_a_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def spoil_by_an_error(file: Path) -> None:
    """Whoever reads it is told of an error of input or output."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


def spoil_by_mode(file: Path) -> None:
    file.chmod(0)


SPOILS = [
    spoil_by_a_byte,
    spoil_by_a_cut,
    pytest.param(
        spoil_by_an_error, marks=pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc here")
    ),
    pytest.param(spoil_by_mode, marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")),
]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("file", ["encoder.onnx", "manifest.json"])
def test_a_bundle_that_is_spoilt_is_refused_at_the_start_and_at_a_swap(
    tmp_path: Path, spoil: Callable[[Path], None], file: str
) -> None:
    models, aside = tmp_path / "models", tmp_path / "aside"
    save_tiny(models)
    spoil(save_tiny(models, seed=1) / file)
    spoilt = save_tiny(aside, version=3, seed=2)
    spoil(spoilt / file)
    settings = {"GRAFT_MODELS": str(models), "GRAFT_MODEL_CONTROL": "poll", "GRAFT_POLL_S": "0.1"}
    with running(**settings) as (process, address, _):
        assert version_of(address) == 1

        def refused() -> float:
            text = httpx.get(f"{address}/metrics").text
            return float(re.findall(r'graft_model_loads_total{model="tiny",outcome="refused"} (\S+)', text)[0])

        assert refused() == 1
        spoilt.rename(models / "tiny/3")
        assert eventually(lambda: refused() == 2)
        assert version_of(address) == 1
        save_tiny(aside, version=4, seed=3).rename(models / "tiny/4")
        assert eventually(lambda: version_of(address) == 4)
        process.terminate()
        log = process.communicate(timeout=20)[1]
    for version in (2, 3):
        assert len(re.findall(rf"refused tiny/{version}/{file}", log)) == 1, log
    assert "Traceback" not in log


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "graft", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system takes the right to mount one: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, but: int = 0) -> None:
    """All of it, or all but so many bytes."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(folder / "filler", (folder / "filler").stat().st_size - but)


def test_a_disk_that_fills_up_takes_no_worker_with_it(models: Path, small: Path) -> None:
    """Workers count in files, the only ones that the service writes; what is counted after that is right as well."""
    settings = {"GRAFT_MODELS": str(models), "GRAFT_WORKERS": "2", "TMPDIR": str(small)}
    with running(**settings) as (process, address, _):
        workers = psutil.Process(process.pid).children
        assert eventually(lambda: len(list(small.glob("graft-metrics-*/counter_*.db"))) == 2)
        time.sleep(2)  # until the second is ready
        before = {worker.pid for worker in workers()}
        fill(small)
        for operation in OPERATIONS:
            for _ in range(20):
                answer = httpx.post(f"{address}/v1/{operation}", content=GOOD, headers=RAW)
                assert answer.status_code == 200
        httpx.post(f"{address}/v1/classify", content=b"no image", headers=RAW)
        text = httpx.get(f"{address}/metrics").text
        assert 'graft_requests_refused_total{type="not-an-image"} 1.0' in text
        assert {worker.pid for worker in workers()} == before
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_a_disk_that_is_full_at_the_start_is_told(models: Path, small: Path) -> None:
    fill(small, but=16 << 10)  # of a folder with less than that, Python takes another
    done = stopped("--port", "0", "--workers", "2", GRAFT_MODELS=str(models), TMPDIR=str(small))
    assert done.returncode == 2
    assert "No space left on device: workers share their metrics there" in done.stderr
    assert "Traceback" not in done.stderr


LAID_ASIDE = 250  # requests; a thousand counts are written at the latest, and each has four and more


def test_a_worker_that_is_killed_under_load_costs_its_own_connections_and_its_last_counts(models: Path) -> None:
    """The others go on, it is replaced, and what it counted stays, but for the last quarter of a second."""
    statuses: Counter[int] = Counter()

    def counted(address: str) -> float:
        text = httpx.get(f"{address}/metrics").text
        series = re.findall(r"graft_requests_total{(.*)} (\S+)", text)
        return sum(
            float(count) for labels, count in series if {'operation="classify"', 'status="200"'} <= {*labels.split(",")}
        )

    async def attack(load: Load, parent: psutil.Process, address: str) -> None:
        loading = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        before = counted(address)
        killed = parent.children()[0]
        killed.kill()
        await asyncio.sleep(3)
        assert killed.pid not in {child.pid for child in parent.children()}
        assert len(parent.children()) == 2
        assert counted(address) >= before - LAID_ASIDE
        load.stopped = True
        await loading

    settings = {"GRAFT_MODELS": str(models), "GRAFT_WORKERS": "2"}
    with running(**settings) as (process, address, _):
        parent = psutil.Process(process.pid)
        assert eventually(lambda: len(parent.children()) == 2)
        time.sleep(2)  # until the second is ready
        request = post("/v1/classify", GOOD, "image/png")
        load = Load(address, [request], clients=16, on_answer=lambda _, answer: statuses.update([answer.status]))
        asyncio.run(attack(load, parent, address))
        assert set(statuses) == {200}
        assert len(load.lost) <= load.clients, "one a connection, at most"
        assert load.refused == 0
        time.sleep(1)  # until the others' latest are written
        assert statuses[200] - LAID_ASIDE <= counted(address) <= statuses[200] + len(load.lost)
