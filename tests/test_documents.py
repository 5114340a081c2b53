"""Documents are held to the code: commands run, links lead somewhere, quoted replies are real."""

import ast
import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import ROOT, draw_folder, draw_inspection, draw_named, save_tiny, serving, spec

import app
import training
from app.bundle import load
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.settings import Settings
from training import recipe
from training.__main__ import main as graft_train
from training.measure.intervals import at_least

PAGES = sorted(
    path for folder in (".", "docs", "docs/decisions", "benchmarks", "app/web") for path in (ROOT / folder).glob("*.md")
)
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


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_part_of_a_page_lead_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    for target in re.findall(r"(?:`|^|\n)make ([a-z-]+)", page.read_text()):
        assert target in made_targets(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    homes = (ROOT, Path(app.__file__).parents[1])
    for name in re.findall(r"`((?:app|training|tests|docs|benchmarks|requirements)/[\w./*-]+)`", page.read_text()):
        assert any(list(home.glob(name.rstrip("/"))) for home in homes), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_formulas_survive_markdown(page: Path) -> None:
    """In a line it reads a backslash before punctuation as its own, and a dollar beside a space as a dollar."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "$$" not in text, "```math"
    for formula in re.findall(r"\$([^$]*)\$", text):
        assert re.fullmatch(r"\S(?:.*\S)?", formula), formula
        assert not re.search(r"\\[^a-zA-Z]", formula), formula


def test_the_map_of_contributing_leads_to_files_for_the_ten_commonest_changes() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## To change X, open Y\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 10
    for change, *columns in rows:
        opened, tested = (re.findall(r"`([^`]+)`", column) for column in columns)
        assert opened, change
        assert tested, change
        for name in (*opened, *tested):
            path = ROOT / name
            assert path.is_dir() if name.endswith("/") else path.is_file(), f"{change}: {name}"


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert made_targets() == set(re.findall(r"^([a-z-]+) ", listed, re.MULTILINE))


def test_without_a_package_index_make_says_what_to_do(tmp_path: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PIP_"))}
    done = subprocess.run(
        ["make", "serve", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        env=environment | nowhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Without a network, or behind a proxy, point pip at a package index" in done.stderr
    assert not (tmp_path / "venv/serve.stamp").exists()


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


def test_the_api_pages_examples_print_what_the_page_says(served: str, tmp_path: Path) -> None:
    page = (ROOT / "docs/api.md").read_text().replace("127.0.0.1:8000", served)
    (tmp_path / "app").symlink_to(Path(app.__file__).parent)
    [shell], [python], [script] = (blocks(page, language) for language in ("sh", "python", "js"))

    def printed(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    answer = json.loads(printed("sh", "-ec", shell.replace("curl ", "curl -sS ")))
    assert [result["label"] for result in answer["results"]] == ["Bag", "Sneaker"]
    assert (tmp_path / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
    assert printed(sys.executable, "-c", python) == python.rpartition("# ")[2].strip()
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine: the JavaScript was not run")
    assert printed(node, "--input-type=module", "-e", script) == script.rpartition("// ")[2].strip()


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
    [command, drawing, _], [sample] = blocks(page, "sh"), blocks(page, "csv")  # the last takes a cluster: test_on_ray
    home = Path(app.__file__).parents[1]
    for folder in ("models", "app"):
        (tmp_path / folder).symlink_to((ROOT if folder == "models" else home) / folder)
    for each in (command, drawing):
        subprocess.run([sys.executable, *shlex.split(each)[1:]], cwd=tmp_path, capture_output=True, check=True)
    written = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    drawn = csv.DictReader(io.StringIO((tmp_path / "anomalies.csv").read_text()))
    assert {row["map"] for row in drawn} == {path.name for path in (tmp_path / "maps").iterdir()}
    shown = list(csv.DictReader(io.StringIO(sample)))
    assert len(written) == len(shown)
    for row, output in zip(written, shown, strict=True):
        assert row.pop("digest") == load(ROOT / "models" / row["model"] / row["version"]).digest
        assert output.pop("digest") == "…"
        assert {name: shape(read(value)) for name, value in row.items()} == {n: read(v) for n, v in output.items()}


def read(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


SMALL = (  # what turns minutes into seconds
    *("network.kind=dense", "network.hidden=8", "network.latent=4", "input.height=16", "input.width=16"),
    *("pretrain.epochs=1", "transfer.epochs=1", "decoder.epochs=1", "split.test=0.2", "false_alarm_rate=0.1"),
)

SETS = tuple(part for change in SMALL for part in ("--set", change))
# An arm takes 300 steps at least, and writes a checkpoint after every epoch: small batches make the epochs few.
FEW_EPOCHS = ("--set", "transfer.mode=full", "--set", "transfer.batch=4")
SHORTER = {
    "run": SETS,
    "pretrain": SETS,
    "transfer": SETS,
    "compare": (*SETS, *FEW_EPOCHS, "--budgets", "10", "--seeds", "2"),
}
OF_RECIPES = {  # in the place of those of the verb
    "inspect": (),  # it trains nothing
    "inspect-own": tuple(f"--set=transfer.{each}" for each in ("epochs=1", "samples=16", "side=64")),
}


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """A folder in which commands run as in the repository, with `my-images`, and drawings for data that has a name."""
    for folder, drawn in zip(
        ("scratches", "dents", "sound"), draw_folder(tmp_path / "drawn", 40, 0).iterdir(), strict=False
    ):
        (tmp_path / "my-images" / folder).mkdir(parents=True)
        for path in drawn.iterdir():
            shutil.copy(path, tmp_path / "my-images" / folder / f"{int(path.stem):04}.jpg")
    draw_folder(tmp_path / "my-normal-images", 60, 1)
    draw_named(tmp_path / "data", 60)
    shutil.copytree(ROOT / "models/fashion-mnist-seed", tmp_path / "models/fashion-mnist-seed")
    return tmp_path


def follow(commands: Iterable[str], folder: Path, as_typed: bool = False) -> dict[str, str]:
    """What each command that trains prints, by its verb; small, and those of make as make would run them.

    They share this process, where torch and its exporter are imported already, unless they are to be run `as_typed`.
    What torchrun starts runs alone: tests/training/test_ranks.py starts two processes by the page's own line.
    """
    output = {}
    for line in commands:
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            planned = [made for made in make_plans(*words[1:]) if made[1:3] == ["-m", "training"]]
            if not planned:
                continue
            [words] = planned
        elif words[0] == "graft-train":
            words = ["python", "-m", "training", *words[1:]]
        elif words[0] == "torchrun":
            words = ["python", *words[words.index("--") - 1 :]]
            words.remove("--")
        assert Path(words[0]).name == "python", line
        verb = words[words.index("training") + 1]
        home = str(Path(training.__file__).parents[1])
        settings = {"PYTHONPATH": home, "OMP_NUM_THREADS": "1", "GRAFT_DATA": str(folder / "data")}
        shorter = next((OF_RECIPES[word] for word in words if word in OF_RECIPES), SHORTER.get(verb, ()))
        arguments = [*words[1:], *shorter]
        if verb == "compare" and "--arms" not in words:
            arguments += ["--arms", "pixels,random,scratch"]
        if as_typed:
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=folder,
                env=os.environ | settings,
                capture_output=True,
                text=True,
                check=False,
            )
        else:
            done = here(arguments[2:], folder, settings)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        output[verb] = done.stdout
    return output


def here(arguments: list[str], folder: Path, settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """`graft-train` with these arguments, in this process."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        patch.chdir(folder)
        for name, value in settings.items():
            patch.setenv(name, value)
        status = graft_train(arguments)
    return subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())


def make_plans(*arguments: str) -> list[list[str]]:
    """What make would do, word by word."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in done.stdout.replace("\\\n", "").splitlines()]


def shell(page: str) -> list[str]:
    return "".join(blocks((ROOT / page).read_text(), "sh")).splitlines()


def test_the_steps_by_hand_lead_to_a_bundle_that_answers_its_curl(owned: Path) -> None:
    page = "docs/by-hand.md"
    [recipe] = blocks((ROOT / page).read_text(), "toml")
    (owned / "my-images.toml").write_text(recipe)
    *steps, curl = shell(page)
    output = follow(steps, owned)
    assert list(output) == ["data", "pretrain", "transfer", "export", "compare"]
    assert "scratches" in output["data"]
    bundle = load(owned / "models/my-images/1")
    assert bundle.manifest.classifier is not None
    assert bundle.manifest.classifier.labels == ("dents", "scratches", "sound")
    assert bundle.drift is None, "too few were held out of these"
    assert (owned / "runs/my-images/report.html").is_file()
    with serving(Settings(models=owned / "models")) as client:
        command = [*shlex.split(curl.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))), "-sS"]
        done = subprocess.run(command, cwd=owned, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["model"]["digest"] == bundle.digest


def test_the_steps_of_a_model_from_a_few_images_lead_to_one_that_says_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/few-shots.md").read_text()
    draw_folder(tmp_path / "my-shots", 5, seed=0)
    draw_folder(tmp_path / "my-other-images", 5, seed=1)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    output = follow(shell("docs/few-shots.md"), tmp_path)
    assert list(output) == ["graft", "evaluate", "base"]
    assert "explain" in load(tmp_path / "models/my-photos/1").operations
    assert output["graft"].strip() == "models/my-shots-nearest/1"
    [metric] = load(tmp_path / "models/my-shots/1").manifest.metrics
    [sample] = blocks(page, "text")
    right, low = round(metric.value * metric.images), at_least(round(metric.value * metric.images), metric.images)
    assert f"{right} of {metric.images} images were classified correctly: {metric.value:.1%}; " in sample
    assert f"on new images at least {low:.1%} (95 % confidence)" in sample


def test_the_commands_of_the_page_on_evidence_find_what_is_similar(tmp_path: Path) -> None:
    first, second, index = shell("docs/evidence.md")
    draw_folder(tmp_path / "complaints", 3, seed=0)
    save_tiny(tmp_path / "models", "my-images", shape=spec(28, 28))
    done = here(shlex.split(index, comments=True)[1:], tmp_path, {})
    assert done.stdout.endswith("models/my-images/2\n"), done.stderr
    with serving(Settings(models=tmp_path / "models")) as client:
        [similar], [classified] = (curled(each, client) for each in (first, second))
    assert [each["file"].endswith(".png") for each in similar["similar"]] == [True, True]
    assert classified["evidence"] == similar["similar"][0]


def test_the_commands_of_the_page_on_feedback_keep_it_and_learn_from_it(tmp_path: Path) -> None:
    _, sent, named, learn = shell("docs/feedback.md")
    save_tiny(tmp_path / "models", "my-images")
    with serving(Settings(models=tmp_path / "models", feedback=tmp_path / "feedback")) as client:
        [stored] = curled(sent.replace("label=Bag", "label=owl"), client)
        answer = client.post("/v1/classify", content=png(garment("bag")), headers={"content-type": "image/png"})
        [verdict] = curled(named.replace("5f1c", answer.headers["x-request-id"]), client)
    assert (stored["label"], verdict["label"]) == ("owl", "sound")
    done = here(shlex.split(learn)[1:], tmp_path, {})
    assert done.returncode == 2
    assert "1 images with a label, 1 with sound or defect" in done.stderr
    assert "not published" in done.stderr


def curled(command: str, client: httpx.Client) -> list[dict[str, Any]]:
    """The results."""
    words = shlex.split(command.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/")))
    home = Path(app.__file__).parents[1]
    done = subprocess.run([*words, "-sS"], cwd=home, capture_output=True, text=True, check=True)
    results: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return results


def test_the_command_for_weights_of_others_is_one_that_a_recipe_takes() -> None:
    """Run it is elsewhere, with weights that are made there."""
    [command] = blocks((ROOT / "docs/methods.md").read_text(), "sh")
    words = shlex.split(command)
    assert words[:4] == [".venv/bin/python", "-m", "training", "run"]
    requested = recipe.load(words[4], words[6::2])
    assert set(words[5::2]) == {"--set"}
    assert (requested.name, requested.network.weights) == ("mine", "resnet18-f37072fd.pth")


def test_the_two_commands_of_the_readme_lead_to_a_bundle(owned: Path) -> None:
    """The folder has one of sound images: it is inspected."""
    [commands] = [block for block in blocks(README, "sh") if block.startswith("make model")]
    output = follow(commands.splitlines(), owned, as_typed=True)
    assert list(output) == ["auto"]
    assert "defective" in output["auto"]
    assert load(owned / "models/my-images/1").manifest.anomaly is not None
    typed = [line.partition("#")[0].strip() for line in commands.splitlines()]
    assert [line.partition("#")[0].strip() for line in shell("docs/getting-started.md")] == typed


def test_the_commands_of_the_training_page_do_what_it_says(owned: Path) -> None:
    output = follow(shell("docs/training.md"), owned)
    assert list(output) == ["run", "data", "compare", "evaluate", "calibrate"]
    assert load(owned / "models/quick/1").operations
    assert load(owned / "models/quick/2").operations
    assert "accuracy" in output["evaluate"]
    assert load(owned / "models/fashion-mnist-seed/2").manifest.anomaly is not None


def test_the_commands_of_the_quality_page_compare(owned: Path) -> None:
    assert list(follow(shell("docs/quality.md"), owned)) == ["compare"]


def test_the_commands_of_the_example_from_a_factory_lead_to_a_bundle(owned: Path) -> None:
    output = follow([line.replace("FOLDER", "my-images") for line in shell("docs/defects.md")], owned)
    assert list(output) == ["data", "run", "compare"]
    assert load(owned / "models/defects/1").operations


def test_the_commands_of_the_page_on_inspection_measure_defects(tmp_path: Path) -> None:
    draw_inspection(tmp_path / "surfaces", sound=60)
    output = follow([line.replace("FOLDER", "surfaces") for line in shell("docs/inspection.md")], tmp_path)
    assert list(output) == ["data", "run", "evaluate"]
    assert output["data"].startswith("taken for: inspection")
    table = (ROOT / "docs/inspection.md").read_text().partition("| measure | meaning |")[2]
    measures = [name for names in re.findall(r"^\| ([^|-]+) \|", table, re.MULTILINE) for name in names.split(", ")]
    assert len(measures) == 7
    for name in measures:
        assert name in output["evaluate"], name


def test_the_table_of_the_page_on_inspection_is_read(tmp_path: Path) -> None:
    [text] = blocks((ROOT / "docs/inspection.md").read_text(), "csv")
    (tmp_path / "list.csv").write_text(text)
    for row in csv.DictReader(io.StringIO(text)):
        for name in filter(None, (row["path"], row["mask"])):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            garment("bag", 32).save(tmp_path / name)
    done = here(["data", "list.csv"], tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert "images with defects: 1 (crack); masks of them: 1" in done.stdout


def test_the_command_of_the_page_on_labelling_says_what_the_page_says(tmp_path: Path) -> None:
    draw_folder(tmp_path / "sorted", 12, seed=0)
    photos = tmp_path / "my-photos"
    photos.mkdir()
    for path in (tmp_path / "sorted").glob("*/*.png"):
        shutil.copy(path, photos / f"{path.parent.name}-{path.name}")
    shutil.copy(photos / "bag-0.png", photos / "copy.png")
    [line] = shell("docs/labelling.md")
    done = here(shlex.split(line, comments=True)[3:], tmp_path, {"OMP_NUM_THREADS": "1"})
    if "its weights are not here" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/label-my-photos/labels.csv\n"
    [sample] = blocks((ROOT / "docs/labelling.md").read_text(), "text")

    def without_numbers(text: str) -> list[str]:
        return re.sub(r"[\d,]+(?= |;|$)", "N", text, flags=re.MULTILINE).splitlines()

    assert [each for each in without_numbers(sample) if each not in without_numbers(done.stderr)] == []


def test_the_lists_of_the_page_on_labels_are_read(tmp_path: Path) -> None:
    """Those in JSON say the same as those in a CSV, where they have the same images."""
    page = (ROOT / "docs/labels.md").read_text()
    lists = {"csv": blocks(page, "csv"), "jsonl": blocks(page, "json")}
    assert [len(each) for each in lists.values()] == [2, 2]
    said = []
    for kind, texts in lists.items():
        for number, text in enumerate(texts):
            for path in re.findall(r"\b(?:photos|street)/\d+\.jpg", text):
                (tmp_path / path).parent.mkdir(exist_ok=True)
                garment("bag", 32).save(tmp_path / path)
            (tmp_path / f"{number}.{kind}").write_text(text)
            done = here(["data", f"{number}.{kind}"], tmp_path, {})
            assert done.returncode == 0, done.stderr
            said.append(done.stdout.splitlines()[0])
            unlabelled = re.search(r"left out lines without a label \(\?\) \(1\): line \d", done.stderr)
            assert (unlabelled is not None) == (number == 1), done.stderr
    several = "taken for: images that may have several labels, of 2"
    assert [line.partition(";")[0] for line in said] == ["taken for: images to classify, 2 classes", several] * 2


def test_the_command_of_the_page_on_backbones_leads_to_a_bundle(owned: Path) -> None:
    [line] = shell("docs/backbones.md")
    words = shlex.split(line.replace("FOLDER", "my-images"))
    done = here(words[3:], owned, {"OMP_NUM_THREADS": "1", "GRAFT_DATA": str(owned / "data")})
    assert done.returncode == 0, done.stderr
    assert "explain" in load(owned / "models/photos/1").operations


def test_the_commands_of_the_install_page_ask_for_what_there_is() -> None:
    """Offline: what make has installed satisfies pip. The GPU's packages are planned, and not installed."""
    page = "docs/install.md"
    environment, install, serve, *gpu = (shlex.split(line, comments=True) for line in shell(page))
    assert environment == ["python3", "-m", "venv", ".venv"]
    offline = os.environ | {"PIP_NO_INDEX": "1"}
    subprocess.run([sys.executable, *install[1:]], cwd=ROOT, env=offline, capture_output=True, check=True)
    assert make_plans("serve")[-1][-2:] == serve[1:]
    by_hand = [words[1:] for words in gpu if words[0] == "pip"]
    [planned, *_] = [words for line in gpu[:1] for words in make_plans(*line[1:]) if "uninstall" in words]
    assert set(by_hand[0]) <= set(planned)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / page).read_text().partition("## On a GPU")[0]
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE)) == set(extras)


def bench_commands() -> list[str]:
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/performance.md", "benchmarks/results.md"))
    named = re.findall(r"`(make bench [^`]+)`", text)
    shown = [line.partition("#")[0].strip() for line in shell("docs/performance.md") if line.startswith("make")]
    return list(dict.fromkeys([*named, *shown]))


@pytest.mark.parametrize("command", bench_commands())
def test_every_measurement_of_the_pages_could_be_made(command: str) -> None:
    """All but the load, which takes minutes: it refuses to begin without wrk, when it has understood the rest."""
    [words] = [words for words in make_plans(*shlex.split(command, comments=True)[1:]) if "benchmarks" in words]
    environment = os.environ | {"PATH": os.devnull}
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == (0 if "HELP=1" in command else 2), done.stderr
    assert "HELP=1" in command or "wrk makes the load" in done.stderr


def test_the_commands_of_the_page_on_scale_are_those_that_are_run_elsewhere() -> None:
    """They take Ray, which has an environment of its own, and minutes: tests/test_ray_serve.py, tests/benchmarks."""
    assert [line.split("  ")[0] for line in shell("docs/scale.md")] == [
        "make scale",
        "pip install 'graft[ray]'",
        "serve run --app-dir . deploy/ray/serve.yaml",
    ]


def test_the_commands_of_the_page_on_tracking_are_others_but_for_one(tmp_path: Path) -> None:
    """TensorBoard and MLflow have environments of their own: tests/training/tracking runs the script if it can."""
    lines = [command for line in shell("docs/tracking.md") for part in line.split("&&") for command in part.split("|")]
    own = [shlex.split(line) for line in lines if "-m training" in line]
    assert [words[1:] for words in own] == [["-m", "training", "runs", "--json"]]
    assert {Path(shlex.split(line)[0]).name for line in lines} == {"python", "pip", "tensorboard", "mlflow"}
    done = here(own[0][3:], tmp_path, {})
    assert done.returncode == 2
    assert "no runs yet" in done.stderr


def test_no_page_has_commands_that_no_test_runs() -> None:
    tests = Path(__file__).read_text()
    for page in PAGES:
        if blocks(page.read_text(), "sh"):
            assert page.name == "README.md" or f'"docs/{page.name}"' in tests, page


def test_the_numbers_of_the_readme_are_the_bundles() -> None:
    both = [load(ROOT / "models" / name / "1").manifest.metrics for name in ("fashion-mnist", "fashion-mnist-seed")]
    for line, metric in (("accuracy", "accuracy"), ("the same weights in torch", "accuracy_in_torch")):
        values = [next(m.value for m in metrics if m.name == metric) for metrics in both]
        assert f"| {line} | {values[0]:.2%} | {values[1]:.2%} |".replace("%", " %") in README
