"""Documents are held to the code: commands run, links lead somewhere, quoted replies are real."""

import ast
import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

import app
from app.bundle import load

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "app/web").rglob("*.md")])
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def made_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        home = Path(app.__file__).parents[1] if target.startswith("app/") else page.parent
        assert (home / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    for target in re.findall(r"(?:`|^|\n)make ([a-z-]+)", page.read_text()):
        assert target in made_targets(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    homes = (ROOT, Path(app.__file__).parents[1])
    for name in re.findall(r"`((?:app|training|tests|docs|benchmarks|requirements)/[\w./*-]+)`", page.read_text()):
        assert any(list(home.glob(name.rstrip("/"))) for home in homes), name


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert made_targets() == set(re.findall(r"^([a-z-]+) ", listed, re.MULTILINE))


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of the service as the README starts it, on a free port in place of 8000."""
    venv = Path(sys.prefix)
    if not (venv / "serve.stamp").exists():
        pytest.skip("not run from the environment that make makes: `make serve` would install one")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GRAFT_", "MAKE", "MFLAGS"))
    }
    start = time.monotonic()
    with subprocess.Popen(
        ["make", "serve", f"VENV={venv}", "PORT=0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(60, process.kill)  # a silent child must not hang the suite
        watchdog.start()
        try:
            printed = process.stdout.readline() + process.stdout.readline()
            seconds = time.monotonic() - start
            print(f"make serve answered after {seconds:.2f} s: {printed}")
            assert seconds < 10, "an install, on a second start?"
            address = re.search(r"http://(127\.0\.0\.1:\d+)", printed)
            assert address, printed
            yield address[1]
        finally:
            watchdog.cancel()
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=20)


def shape(value: Any) -> Any:
    """A reply with its numbers rounded: a processor's own kernels may round eight-bit steps otherwise."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return pytest.approx(value, abs=0.01) if isinstance(value, float) else value


def test_the_readmes_curl_gets_the_readmes_reply(served: str) -> None:
    [curl] = [block for block in blocks(README, "sh") if block.startswith("curl")]
    [reply] = blocks(README, "json")
    command = shlex.split(curl.replace("127.0.0.1:8000", served))
    home = Path(app.__file__).parents[1]  # where the sample lies: the tree, or the unpacked wheel
    done = subprocess.run([*command, "-sS"], cwd=home, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == shape(json.loads(reply))


def test_the_protocol_pages_curl_gets_its_reply_and_its_client_its_embedding(served: str) -> None:
    page = (ROOT / "docs/v2.md").read_text()
    [curl], [reply], [code] = (blocks(page, language) for language in ("sh", "json", "python"))
    home = Path(app.__file__).parents[1]
    command = curl.replace("127.0.0.1:8000", served).replace("curl ", "curl -sS ", 1)
    done = subprocess.run(["sh", "-c", command], cwd=home, capture_output=True, text=True, check=True)
    assert numbers(json.loads(done.stdout)) == shape(numbers(json.loads(reply)))
    client = [sys.executable, "-c", code.replace("127.0.0.1:8000", served)]
    done = subprocess.run(client, cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == code.rpartition("# ")[2].strip()


def numbers(value: Any) -> Any:
    """A reply whose classes, value:index:label, are numbers too."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    found = re.fullmatch(r"(\d\.\d+):(\d+):(.*)", str(value))
    return [float(found[1]), found[2], found[3]] if found else value


def test_the_python_of_the_bundle_page_runs(tmp_path: Path) -> None:
    [code] = blocks((ROOT / "docs/bundle.md").read_text(), "python")
    ast.parse(code)
    home = Path(app.__file__).parents[1]
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "app").symlink_to(home / "app")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    label, p_value = done.stdout.split()
    assert label == "Bag"
    assert 0 < float(p_value) <= 1


def test_the_command_of_the_score_page_writes_what_the_page_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs/score.md").read_text()
    [command], [sample] = blocks(page, "sh"), blocks(page, "csv")
    home = Path(app.__file__).parents[1]
    for folder in ("models", "app"):
        (tmp_path / folder).symlink_to((ROOT if folder == "models" else home) / folder)
    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, check=True)
    written = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    shown = list(csv.DictReader(io.StringIO(sample)))
    assert len(written) == len(shown)
    for row, told in zip(written, shown, strict=True):
        assert row.pop("digest") == load(ROOT / "models" / row["model"] / row["version"]).digest
        assert told.pop("digest") == "…"
        assert {name: shape(read(value)) for name, value in row.items()} == {n: read(v) for n, v in told.items()}


def read(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def test_the_numbers_of_the_readme_are_the_bundles() -> None:
    both = [load(ROOT / "models" / name / "1").manifest.metrics for name in ("fashion-mnist", "fashion-mnist-seed")]
    for line, metric in (("accuracy", "accuracy"), ("the same weights in torch", "accuracy_in_torch")):
        values = [next(m.value for m in metrics if m.name == metric) for metrics in both]
        assert f"| {line} | {values[0]:.2%} | {values[1]:.2%} |".replace("%", " %") in README
