"""Real clusters of two nodes on this machine, in the environment that `make ray` makes."""

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import draw_folder, save_tiny

import app
from app.__main__ import main
from app.bundle.session import CPU, compiled_in
from app.errors import CannotScore, SettingsInvalid
from app.inference.providers import GPU
from app.score import on_ray, storage
from app.score.on_ray import Job

RAY = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-ray") / "bin/python"
HERE = Path(__file__).parents[2]
PATIENCE_S = 300
HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None

with_ray = pytest.mark.skipif(not RAY.exists(), reason="no environment with Ray: `make ray` makes it")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eleven blocks of 64 images, and one image that is none."""
    folder = draw_folder(tmp_path / "images", 176, seed=1)
    (folder / "bag" / "7.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def cluster() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [RAY, HERE / "ray_cluster.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE_S)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRAFT_", "COVERAGE"))}
    return {**kept, "PYTHONPATH": str(Path(app.__file__).parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}


def address_of(cluster: subprocess.Popen[str]) -> str:
    assert cluster.stdout is not None
    return cluster.stdout.readline().strip()


def scoring(
    models: Path, images: str | Path, out: str | Path, address: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    given = ["--models", models, "--batch", "1", "--operation", "classify", "--out", out, "--ray", address]
    command = [RAY, "-m", "app", "score", images, *given]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment() | (env or {}), cwd="/")


def parts(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}


def wait_for_a_part(out: Path, process: subprocess.Popen[str]) -> None:
    while not parts(out):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def end_of(process: subprocess.Popen[str]) -> str:
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, error
    return error


def paths_in(out: str | Path, env: dict[str, str] | None = None) -> Counter[str]:
    code = "import json, sys, pyarrow.dataset as d; t = d.dataset(sys.argv[1], format='parquet').to_table(['path'])"
    code += "; print(json.dumps(t['path'].to_pylist()))"
    env = environment() | (env or {})
    done = subprocess.run([RAY, "-c", code, out], capture_output=True, text=True, check=True, env=env)
    return Counter(json.loads(done.stdout))


def assert_each_once(out: Path, images: Path) -> None:
    counts = paths_in(out)
    assert set(counts.values()) == {1}
    assert counts.keys() == {str(path) for path in images.rglob("*.png")} - {str(images / "bag/7.png")}
    lines = (out / "_errors.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [[str(images / "bag/7.png"), "not-an-image"]]


@with_ray
def test_a_node_that_is_killed_loses_nothing_and_nothing_is_scored_twice(
    models: Path, images: Path, tmp_path: Path, cluster: subprocess.Popen[str]
) -> None:
    out = tmp_path / "out.parquet"
    process = scoring(models, images, out, address_of(cluster))
    wait_for_a_part(out, process)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "gone\n"
    assert len(parts(out)) < 11, "it was killed in the middle"
    assert "703 images scored; 1 failed" in end_of(process)
    assert_each_once(out, images)


@with_ray
def test_a_run_that_is_killed_goes_on(
    models: Path, images: Path, tmp_path: Path, cluster: subprocess.Popen[str]
) -> None:
    out, address = tmp_path / "out.parquet", address_of(cluster)
    process = scoring(models, images, out, address)
    wait_for_a_part(out, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = parts(out)
    assert "of them already" in end_of(scoring(models, images, out, address))
    assert {path: parts(out)[path] for path in before} == before, "what was written stays"
    assert_each_once(out, images)


@with_ray
def test_object_storage_is_read_and_written(models: Path, tmp_path: Path) -> None:
    """A run, then the same again: there is nothing left to do."""
    folder = draw_folder(tmp_path / "images", 20, seed=1)
    env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    env |= {"AWS_DEFAULT_REGION": "us-east-1"}
    with subprocess.Popen(
        [RAY, HERE / "ray_storage.py", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment() | env,
    ) as bucket:
        env["AWS_ENDPOINT_URL"] = address_of(bucket)
        given, out = "s3://bucket/some%20photos", "s3://bucket/scores.parquet"
        assert "80 images scored" in end_of(scoring(models, given, out, "local", env))
        assert "80 of them already" in end_of(scoring(models, given, out, "local", env))
        counts = paths_in(out, env)
    assert counts == Counter({f"{given}/{path.relative_to(folder)}" for path in folder.rglob("*.png")})


class Objects(BaseHTTPRequestHandler):
    """Object storage that keeps its connections, as real ones do: every object is the same."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:  # as http.server calls it
        first = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        body = OBJECT[int(first[1]) :] if first else OBJECT
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first[1]}-{len(OBJECT) - 1}/{len(OBJECT)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Counting(ThreadingHTTPServer):
    connections = 0

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


OBJECT = b"an object's bytes"
READS = """
from concurrent.futures import ThreadPoolExecutor
from app.score import storage
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(lambda n: len(storage.read(f"s3://bucket/{n}.png", 99)), range(100)))
"""


@with_ray
def test_a_hundred_images_take_a_few_connections() -> None:
    """A file system for each would open one at least for each."""
    server = Counting(("127.0.0.1", 0), Objects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    env["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    try:
        done = subprocess.run(
            [RAY, "-c", READS], capture_output=True, text=True, env=environment() | env, cwd="/", timeout=PATIENCE_S
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout.split() == [str(len(OBJECT))] * 100, done.stderr
    assert 1 <= server.connections <= 20, "four threads, and pyarrow's own"


@with_ray
@pytest.mark.skipif(GPU in compiled_in(), reason="this onnxruntime is built for a GPU")
def test_a_gpu_that_the_cluster_has_not_is_a_sentence(models: Path, tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "images", 4, seed=1)
    required = scoring(models, folder, tmp_path / "a.parquet", "local", {"GRAFT_PROVIDER": "require-gpu"})
    _, error = required.communicate(timeout=PATIENCE_S)
    assert required.returncode == 2
    assert "graft: --provider require-gpu: the cluster has no GPU" in error
    assert "Traceback" not in error
    unknown = scoring(models, folder, tmp_path / "b.parquet", "local", {"GRAFT_PROVIDER": "gpu"})
    _, error = unknown.communicate(timeout=PATIENCE_S)
    assert unknown.returncode == 2
    assert "graft: on Ray: GRAFT_PROVIDER=gpu: this onnxruntime has no 'gpu'" in error
    preferred = scoring(models, folder, tmp_path / "c.parquet", "local", {"GRAFT_PROVIDER": "prefer-gpu"})
    error = end_of(preferred)
    assert "the cluster has no GPU; scoring on its CPUs" in error
    assert f"the graphs ran on {CPU[0]}" in error


@pytest.mark.parametrize(
    ("provider", "there", "each"),
    [
        ("cpu", 4, 0),
        ("prefer-gpu", 4, 1),
        ("prefer-gpu", 0, 0),
        ("require-gpu", 1, 1),
        (f"{GPU},{CPU[0]}", 2, 1),
        ("TensorrtExecutionProvider", 2, 1),
        ("OpenVINOExecutionProvider", 2, 0),
    ],
)
def test_a_block_asks_ray_for_a_gpu_where_the_provider_wants_one(provider: str, there: float, each: int) -> None:
    """Ray hides GPUs from tasks that do not."""
    assert on_ray.gpus_each(provider, there) == each


def test_a_workers_sentence_is_found_in_what_ray_tells() -> None:
    traceback = """ray::MapBatches(score)() (pid=17, ip=192.0.2.2)
  File "on_ray.py", line 4, in score
app.errors.GoldenMismatch: tiny/1/golden.npz: embedding is off

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `ray.data.DataContext.get_current()`.
"""
    assert on_ray.reason(traceback) == "tiny/1/golden.npz: embedding is off"
    assert on_ray.reason("ray::score()\nZeroDivisionError: division by zero\n") == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("provider", ["require-gpu", GPU])
def test_a_cluster_without_the_gpu_that_is_required_is_refused(provider: str) -> None:
    with pytest.raises(CannotScore, match=f"^--provider {provider}: the cluster has no GPU"):
        on_ray.gpus_each(provider, 0)


@pytest.mark.skipif(GPU in compiled_in(), reason="this onnxruntime is built for a GPU")
def test_a_worker_obeys_the_provider(models: Path, tmp_path: Path) -> None:
    """As the function that Ray calls there; of an image that is none, which leaves nothing to write."""
    (tmp_path / "none.png").write_bytes(b"none")
    files = tuple((path.name, path.read_bytes()) for path in sorted((models / "tiny/1").iterdir()))
    job = Job("tiny", 1, files, ("classify", None, None), str(tmp_path), 4, 1, 10**6, 10**6, "cpu", None)
    problems, provider = job.score([str(tmp_path / "none.png")], set())
    assert ([each.kind for each in problems], provider) == (["not-an-image"], CPU[0])
    with pytest.raises(SettingsInvalid, match="GRAFT_PROVIDER=require-gpu: this onnxruntime has no"):
        replace(job, provider="require-gpu").score([str(tmp_path / "none.png")], set())


@pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed: pip install pyarrow")
def test_a_block_has_the_regions_of_a_run_on_this_machine(tmp_path: Path) -> None:
    """As the function that Ray calls: of pictures of another size than the input, some done before."""
    save_tiny(tmp_path / "models", patches=True)
    images = sorted(map(str, draw_folder(tmp_path / "images", 2, seed=1).rglob("*.png")))
    files = tuple((path.name, path.read_bytes()) for path in sorted((tmp_path / "models/tiny/1").iterdir()))
    job = Job("tiny", 1, files, ("anomaly", None, None), str(tmp_path / "out"), 4, 1, 10**6, 10**6, "cpu", None)
    assert job.score(images, {images[0]})[0] == []
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(tmp_path / "out", format="parquet").to_table()
    alone = tmp_path / "alone.csv"
    given = [*images, "--out", str(alone), "--models", str(tmp_path / "models"), "--batch", "4", "--threads", "1"]
    assert main(["score", *given, "--operation", "anomaly"]) == 0
    with alone.open(newline="") as file:
        rows = {row["path"]: row["regions"] for row in csv.DictReader(file)}
    del rows[images[0]]
    assert dict(zip(table["path"].to_pylist(), table["regions"].to_pylist(), strict=True)) == rows
    assert any(json.loads(regions) for regions in rows.values())


def test_keys_do_not_stand_in_paths() -> None:
    for path in ("s3://me:secret@bucket/photos", "s3://bucket/photos?secret_key=secret"):
        with pytest.raises(CannotScore, match="set them in the environment") as raised:
            storage.refuse_secrets(path)
        assert "secret" not in str(raised.value)


def test_without_ray_a_sentence_says_so(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["score", str(tmp_path), "--models", str(models), "--out", str(tmp_path / "o.parquet"), "--ray", "auto"]
    assert main(given) == 2
    assert "--ray needs Ray: pip install 'graft[ray]'" in capsys.readouterr().err
