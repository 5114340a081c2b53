"""`python -m app score` as its user starts it: a process of its own."""

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from PIL import Image
from support import LABELS, draw_folder, save_tiny

import app
from app.bundle import load
from app.bundle.encode import png
from app.bundle.session import CPU, compiled_in
from app.inference.providers import GPU
from app.settings import Settings

PACKAGE_PARENT = Path(app.__file__).parents[1]
BROKEN = ("cut.png", "text.jpg", "huge.png")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    return {**kept, "PYTHONPATH": str(PACKAGE_PARENT)}


def command(models: Path, *arguments: str | Path) -> list[str]:
    own = ["--models", models, "--threads", "1", "--batch", "4"]
    return [sys.executable, "-m", "app", "score", *map(str, [*arguments, *own])]


def score(
    models: Path,
    *arguments: str | Path,
    cwd: Path | None = None,
    before: Callable[[], Any] | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(models, *arguments),
        cwd=cwd,
        # What is limited for the command must not be used up by what measures its coverage.
        env={name: value for name, value in environment().items() if before is None or "COVERAGE" not in name} | env,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=before,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four folders of six pictures, and three files that are none; read only."""
    folder = draw_folder(tmp_path_factory.mktemp("given") / "photos", 6, seed=0)
    whole = (folder / "bag" / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("hello")
    (folder / "huge.png").write_bytes(png(Image.new("L", (2000, 600))))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for a run to be stopped in its middle, some broken; read only."""
    folder = draw_folder(tmp_path_factory.mktemp("many") / "many", 250, seed=1)
    for number in range(0, 250, 50):
        (folder / "bag" / f"{number}.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="module", params=["csv", "jsonl"])
def undisturbed(
    request: pytest.FixtureRequest, models: Path, many: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a run that nobody stops makes of `many`."""
    out = tmp_path_factory.mktemp("whole") / f"out.{request.param}"
    assert score(models, many, "--out", out).returncode == 0
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_table_with_a_row_for_each_image(models: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    done = score(models, "photos", "--out", out, cwd=photos.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "25 images scored; 2 failed" in done.stderr  # the large one is within the service's own limit
    rows = rows_of(out)
    kinds = sorted(path.name for path in photos.iterdir() if path.is_dir())
    named = [f"photos/{kind}/{number}.png" for kind in kinds for number in range(6)]
    assert [row["path"] for row in rows] == sorted([*named, "photos/huge.png"])
    bundle = load(models / "tiny/1")
    for row in rows:
        [direct] = bundle.classify(bundle.preprocess((photos.parent / row["path"]).read_bytes())[None])
        assert row["label"] == direct.label
        assert {label: float(row[f"p:{label}"]) for label in LABELS} == pytest.approx(dict(direct.ranked), abs=1e-5)
        assert (row["model"], row["version"], row["digest"]) == ("tiny", "1", bundle.digest)
        assert (row["anomalous"] == "true") == (float(row["p_value"]) <= 0.05) == (row["in_domain"] == "false")
        assert {"distance:reconstruction", "distance:embedding.mahalanobis"} <= set(row)


def test_what_is_no_image_is_listed_as_the_api_names_it(models: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    assert score(models, photos, "--out", out, "--max-pixels", "1000000").returncode == 0
    listed = {Path(row["path"]).name: row["problem"] for row in rows_of(tmp_path / "results.csv.errors.csv")}
    assert listed == dict(zip(BROKEN, ("broken-image", "not-an-image", "too-many-pixels"), strict=True))
    assert score(models, photos, "--out", out, "--strict", "--max-pixels", "1000000").returncode == 1
    only = [photos / name for name in BROKEN]
    none = score(models, *only, "--out", tmp_path / "none.csv", "--max-pixels", "1000000")
    assert none.returncode == 1
    assert "0 images scored; 3 failed" in none.stderr


@pytest.mark.parametrize("operation", ["classify", "anomaly", "encode", "predict"])
def test_lines_of_json_hold_what_the_service_answers(
    client: httpx.Client, models: Path, photos: Path, tmp_path: Path, operation: str
) -> None:
    paths = [photos / kind / "1.png" for kind in ("bag", "sneaker", "t-shirt", "trouser")]
    out = tmp_path / "results.jsonl"
    assert score(models, *paths, "--out", out, "--operation", operation).returncode == 0
    files = [("image", path.read_bytes()) for path in paths]
    answer = client.post(f"/v1/{operation}", files=files).json()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.pop("path") for row in rows] == list(map(str, paths))
    assert all(row.pop("model") == answer["model"] for row in rows)
    drawn = {"embedding", "image", "error"} if operation == "predict" else set()
    assert rows == [{name: v for name, v in result.items() if name not in drawn} for result in answer["results"]]


def test_top_k_is_a_column_of_json(models: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    assert score(models, photos, "--out", out, "--top-k", "2").returncode == 0
    for row in rows_of(out):
        assert next(iter(json.loads(row["probabilities"]).items())) == (row["label"], float(row["confidence"]))
        assert len(json.loads(row["probabilities"])) == 2
        assert f"p:{LABELS[0]}" not in row


AZURE = "AzureExecutionProvider"  # onnxruntime's builds for CPUs have it: it starts, and leaves the graphs to the CPU


@pytest.mark.skipif(AZURE not in compiled_in(), reason=f"this onnxruntime has no {AZURE}")
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_the_provider_reaches_the_graphs_and_is_said(models: Path, photos: Path, tmp_path: Path, by: str) -> None:
    wanted = f"{AZURE},{CPU[0]}"
    done = {}
    for name, provider in (("cpu", "cpu"), ("azure", wanted)):
        out = tmp_path / f"{name}.csv"
        flag = ["--provider", provider] if by == "flag" else []
        env = {} if by == "flag" else {"GRAFT_PROVIDER": provider}
        done[name] = score(models, photos / "bag", "--out", out, *flag, env=env)
        assert done[name].returncode == 0, done[name].stderr
    assert f"6 images by tiny@1 on {CPU[0]} into" in done["cpu"].stderr
    assert f"6 images by tiny@1 on {AZURE} into" in done["azure"].stderr
    assert (tmp_path / "cpu.csv").read_bytes() == (tmp_path / "azure.csv").read_bytes()


@pytest.mark.skipif(GPU in compiled_in(), reason="this onnxruntime is built for a GPU")
def test_a_gpu_that_is_required_and_not_there_is_a_sentence(models: Path, photos: Path, tmp_path: Path) -> None:
    """Before an image is read or a file written; one that is preferred is a warning."""
    out = tmp_path / "results.csv"
    sentence = rf"graft: GRAFT_PROVIDER=require-gpu: this onnxruntime has no '{GPU}', it has .*`make install-gpu`.*\n"
    for done in (
        score(models, photos, "--out", out, "--provider", "require-gpu"),
        score(models, photos, "--out", out, env={"GRAFT_PROVIDER": "require-gpu"}),
    ):
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(sentence, done.stderr)
    assert not list(tmp_path.iterdir())
    preferred = score(models, photos / "bag", "--out", out, "--provider", "prefer-gpu")
    assert preferred.returncode == 0
    assert "GRAFT_PROVIDER=prefer-gpu: the CPU runs the graphs" in preferred.stderr
    assert f"on {CPU[0]}" in preferred.stderr


def stopped_midway(
    models: Path, many: Path, out: Path, number: signal.Signals, *options: str | Path
) -> subprocess.CompletedProcess[str]:
    """By a signal, as soon as it has written something."""
    process = subprocess.Popen(
        command(models, many, "--out", out, *options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        while not (out.exists() and out.read_bytes().count(b"\n") > 20):
            assert process.poll() is None, process.communicate()
        process.send_signal(number)
        stdout, stderr = process.communicate()
    finally:
        watchdog.cancel()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_stopped_goes_on_to_what_it_would_have_been(
    models: Path, many: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / undisturbed.name
    first = stopped_midway(models, many, out, number)
    assert first.returncode == status
    assert first.stdout == ""
    assert out.stat().st_size < undisturbed.stat().st_size
    if number == signal.SIGKILL:
        with out.open("r+b") as file:
            file.truncate(out.stat().st_size - 7)  # in the middle of its last row
    else:
        assert out.read_bytes().endswith(b"\n")
        assert "run the same command again to resume" in first.stderr
    second = score(models, many, "--out", out)
    assert second.returncode == 0
    assert "of them already" in second.stderr
    assert out.read_bytes() == undisturbed.read_bytes()
    assert Path(f"{out}.errors.csv").read_text() == Path(f"{undisturbed}.errors.csv").read_text()


def test_a_run_that_was_killed_leaves_whole_maps_and_goes_on(many: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "models", patches=True)
    out, maps = tmp_path / "out.csv", tmp_path / "maps"
    stopped_midway(tmp_path / "models", many, out, signal.SIGKILL, "--maps", maps)
    begun = {row["map"] for row in rows_of(out)[:-1]}  # the last one may be torn
    assert 0 < len(begun) < 995
    for name in sorted(path.name for path in maps.glob("[!.]*")):
        with Image.open(maps / name) as map_:
            map_.load()
    assert begun <= {path.name for path in maps.iterdir()}
    before = {name: (maps / name).stat().st_mtime_ns for name in begun}
    assert score(tmp_path / "models", many, "--out", out, "--maps", maps).returncode == 0
    assert {name: (maps / name).stat().st_mtime_ns for name in begun} == before, "finished rows are left alone"
    assert {path.name for path in maps.iterdir()} == {row["map"] for row in rows_of(out)}
    assert len(rows_of(out)) == 995


def test_a_disk_that_is_too_full_for_a_map_is_a_sentence(photos: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "models", patches=True)
    out, maps = tmp_path / "out.csv", tmp_path / "maps"

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    large = tmp_path / "large.bmp"
    Image.effect_noise((400, 400), 50).save(large)
    given = [*(photos / "bag" / f"{number}.png" for number in range(4)), large]
    done = score(tmp_path / "models", *given, "--out", out, "--maps", maps, before=little_room)
    assert done.returncode == 2
    assert re.search(r"maps/.*large-\w{16}\.png: file too large; the rows written so far are kept", done.stderr)
    assert "Traceback" not in done.stderr
    assert {path.name for path in maps.iterdir()} == {row["map"] for row in rows_of(out)}
    assert len(rows_of(out)) == 4


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_was_begun_otherwise_is_not_gone_on_with(models: Path, photos: Path, tmp_path: Path, form: str) -> None:
    save_tiny(tmp_path / "models")
    save_tiny(tmp_path / "models", seed=1)
    out = tmp_path / f"results.{form}"
    assert score(models, photos, "--out", out).returncode == 0
    before = out.read_bytes()
    cases = [
        (score(tmp_path / "models", photos, "--out", out), "tiny@1", "--model tiny@1"),
        (score(models, photos, "--out", out, "--operation", "encode"), "--operation predict", "encode"),
        (score(models, photos, "--out", out, "--top-k", "2"), "--top-k", "another --out"),
        (score(models, photos, "--out", out, "--false-alarm-rate", "0.2"), "threshold", "--false-alarm-rate"),
    ]
    for done, what, mend in cases:
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert what in done.stderr
        assert mend in done.stderr
    assert out.read_bytes() == before


def test_images_that_came_later_are_added(models: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    assert score(models, photos / "bag", "--out", out).returncode == 0
    assert score(models, photos / "bag", photos / "sneaker", "--out", out).returncode == 0
    alone = tmp_path / "sneakers.csv"
    assert score(models, photos / "sneaker", "--out", alone).returncode == 0
    assert [row["path"] for row in rows_of(out)[6:]] == [row["path"] for row in rows_of(alone)]
    assert len(rows_of(out)) == 12


def test_what_cannot_be_is_said_in_a_sentence_before_anything_is_done(
    models: Path, photos: Path, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "models", "bare", head=False, anomaly=False)
    out = tmp_path / "results.csv"
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("what a person keeps")
    cases = [
        (score(models, photos, tmp_path / "none", "--out", out), "none: there is no such file or folder"),
        (score(models, tmp_path / "empty", "--out", out), "no image ("),
        (score(models, photos, "--out", tmp_path / "results.txt"), ".csv, .jsonl, .parquet"),
        (score(models, photos, "--out", tmp_path / "no" / "results.csv"), "there is no folder"),
        (score(models, photos, "--out", foreign), "lines that are not of this command"),
        (score(models, photos, "--out", out, "--model", "other"), "tiny@1"),
        (score(models, photos, "--out", out, "--model", "tiny@7"), "tiny@1"),
        (score(tmp_path / "empty", photos, "--out", out), "folder of bundles"),
        (score(models, photos, "--out", out, "--operation", "encode", "--top-k", "2"), "--top-k limits"),
        (
            score(models, photos, "--out", out, "--operation", "classify", "--false-alarm-rate", "0.1"),
            "is for anomaly scores",
        ),
        (score(models, photos, "--out", out, "--false-alarm-rate", "0.0001"), "9999 are needed"),
        (score(models, photos, "--out", out, "--max-pixels", "0"), "--max-pixels=0"),
        (score(tmp_path / "models", photos, "--out", out), "--operation encode"),
        (score(tmp_path / "models", photos, "--out", out, "--operation", "classify"), "has no head"),
    ]
    for done, message in cases:
        assert done.returncode == 2, done
        assert done.stderr.startswith("graft: ")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
    assert not out.exists()
    assert foreign.read_text() == "what a person keeps"


def test_a_full_disk_ends_it_in_a_sentence_and_what_was_written_stays(
    models: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.csv"

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = score(models, photos, "--out", out, before=little_room)
    assert done.returncode == 2
    assert "the rows written so far are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert 0 < len(rows_of(out)) < 25
    assert out.read_bytes().endswith(b"\n")
    assert score(models, photos, "--out", out).returncode == 0
    assert len(rows_of(out)) == 25


def test_the_limits_and_defaults_are_the_services(models: Path, photos: Path, tmp_path: Path) -> None:
    text = " ".join(score(models, "--help").stdout.split())
    for name in ("max_pixels", "max_body_mb", "max_batch"):
        assert f"(default: {Settings.model_fields[name].default})" in text
    assert "--maps FOLDER" in text
    large = tmp_path / "large.png"
    large.write_bytes((photos / "bag/0.png").read_bytes() + bytes(2 << 20))
    score(models, large, "--out", tmp_path / "results.csv", "--max-body-mb", "1")
    [listed] = rows_of(tmp_path / "results.csv.errors.csv")
    assert listed["problem"] == "body-too-large"
    assert "--max-body-mb" in listed["detail"]
