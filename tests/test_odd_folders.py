"""No folder that a user can have ends a command in a traceback: exit 0 or 2, and what is left out is named."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import ROOT, environment, save_tiny, spec

from app.bundle import load
from app.bundle.encode import png
from app.score.command import main as score
from training.__main__ import main
from training.errors import printable

SIDE = 8
MASK_ENDINGS = ("_mask.png", ".png", "_mask.tif", ".txt")
RECIPE = "quick"
ODD_NAMES = (
    ".ipynb_checkpoints",
    ".DS_Store",
    "Thumbs.db",
    "__MACOSX",
    "train",
    "test",
    "a.png",
    "two words",
    "-dash",
    "two\nlines",
    "tab\t\x1b[31m",
    os.fsdecode(b"\xff\xfe"),
    "ä",
    "a\u0308",
    "日本語",
    "عکس\u200cها",
    "😀",
    "{0}%s$HOME",
    "<b>&amp;",
    "|pipe|",
    "n" * 250,
)


@dataclass(frozen=True)
class Link:
    to: str


Node = bytes | Link | None | dict[str, "Node"]  # a file, a link, a pipe, a folder


def noise(number: int, side: int = SIDE) -> bytes:
    return png(Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side), dtype=np.uint8)))


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (SIDE, SIDE)).save(buffer, "JPEG")
    return buffer.getvalue()


IMAGES = tuple(noise(number) for number in range(160))
CONTENTS = (
    b"",
    b"text",
    IMAGES[0][:-9],
    IMAGES[1][:30],
    b"\xff\xd8\xff",
    b"II*\x00" + b"\xff" * 20,
    jpeg(),
    noise(99, 1),
)

names = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.builds(os.fsdecode, st.binary(min_size=1, max_size=12)).filter(
        lambda name: "/" not in name and "\0" not in name and name not in (".", "..")
    ),
)
usual = st.sampled_from(("cat", "dog", "owl", "good", "ä", "日本語"))
class_names = st.one_of(usual, usual, usual, st.sampled_from(ODD_NAMES))
file_names = st.builds(
    lambda name, suffix: name[:200] + suffix, names, st.sampled_from((".png", ".JPG", ".tif", ".txt", ""))
)
links = st.builds(Link, st.sampled_from((".", "..", "nowhere", "itself", "good", "/dev/null", "/dev/zero")))
leaves: st.SearchStrategy[Node] = st.one_of(
    st.sampled_from(IMAGES), st.sampled_from(CONTENTS), links, st.none(), st.just({})
)
oddities = st.dictionaries(
    file_names,
    st.recursive(leaves, lambda nodes: st.dictionaries(file_names, nodes, max_size=3), max_leaves=4),
    max_size=3,
)


def images(count: int, first: int) -> dict[str, Node]:
    return {f"{number}.png": IMAGES[(first + number) % len(IMAGES)] for number in range(count)}


@st.composite
def classes(draw: st.DrawFn, counts: tuple[int, ...], fewest: int) -> dict[str, Node]:
    drawn = draw(st.dictionaries(class_names, st.sampled_from(counts), min_size=fewest, max_size=4))
    return {name: {**images(count, 40 * index), **draw(oddities)} for index, (name, count) in enumerate(drawn.items())}


@st.composite
def trees(draw: st.DrawFn, counts: tuple[int, ...] = (0, 1, 2, 6, 12, 40), fewest: int = 0) -> dict[str, Node]:
    """A folder of images, of classes, or of parts; and what else lies in it."""
    flat = st.builds(images, st.sampled_from(counts), st.integers(0, 10))
    plain = st.one_of(flat, classes(counts, fewest), classes(counts, fewest))
    tree = draw(st.one_of(plain, st.fixed_dictionaries({"train": plain, "test": plain})))
    return {**tree, **draw(oddities)}


mask_names = st.builds(lambda number, ending: f"{number}{ending}", st.integers(0, 12), st.sampled_from(MASK_ENDINGS))
masks = st.dictionaries(mask_names, st.one_of(st.sampled_from(IMAGES[:3]), leaves), max_size=8)


@st.composite
def inspections(draw: st.DrawFn, sound: tuple[int, ...] = (0, 1, 12, 40)) -> dict[str, Node]:
    """Sound images to learn from, kinds of defect to judge and their masks; in parts or side by side, and damaged."""
    good = draw(st.sampled_from(("good", "OK", "fine")))
    learnt: dict[str, Node] = {good: images(draw(st.sampled_from(sound)), 0)}
    kinds = draw(st.dictionaries(st.one_of(class_names, st.just(good)), st.sampled_from((0, 1, 6)), max_size=3))
    judged: dict[str, Node] = {
        name: {**images(count, 60 + 20 * index), **draw(oddities)} for index, (name, count) in enumerate(kinds.items())
    }
    truth = {name: draw(st.one_of(masks, masks, leaves)) for name in (*kinds, *draw(st.lists(class_names, max_size=1)))}
    parts: dict[str, Node] = {"train": learnt, "test": judged} if draw(st.booleans()) else {**judged, **learnt}
    return {**parts, "ground_truth": draw(st.one_of(st.just(truth), st.just(truth), leaves)), **draw(oddities)}


HEADS = ("path,label,split,group,mask", "path;label", "image\tsplit", "label", "path,path", "path,label,split")
PATHS = ("0.png", "cat/0.png", "good/1.png", "nowhere.png", "..", "\0", "")
csv_texts = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda head, lines: "\n".join([head, *lines]).encode("utf-8", "surrogateescape"),
        st.sampled_from(
            ("path,label,split,group,mask", "path;label", "image\tsplit", "label", "path,path", "path,label,split")
        ),
        st.lists(
            st.builds(
                lambda *values: ",".join(values),
                st.one_of(st.sampled_from(PATHS), file_names),
                st.sampled_from(("good", "crack", "", "a\nb", '"')),
                st.sampled_from(("train", "test", "val", "")),
                st.sampled_from(("a", "b", "")),
                st.sampled_from(("", "0.png", "nowhere.png", "ground_truth/crack/0_mask.png")),
            ),
            max_size=6,
        ),
    ),
)


def plant(tree: dict[str, Node], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, node in tree.items():
        path = folder / name
        if isinstance(node, dict):
            plant(node, path)
        elif isinstance(node, Link):
            path.symlink_to(node.to)
        elif node is None:
            os.mkfifo(path)
        else:
            path.write_bytes(node)
    return folder


@contextlib.contextmanager
def planted(tree: dict[str, Node]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="graft-odd-") as folder:
        yield plant(tree, Path(folder) / "tree")


def output(command: Callable[[list[str]], int], *arguments: object) -> tuple[int, str]:
    """(exit status, all that it printed); any exception goes on to the test."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command([str(argument) for argument in arguments])
    out.flush(), err.flush()
    text = b"".join(stream.buffer.getvalue() for stream in (out, err)).decode("utf-8", "replace")  # type: ignore[attr-defined]
    assert sum("left out" in line for line in text.splitlines()) < 30, text
    assert "\x1b" not in text
    return status, text


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models"), shape=spec(SIDE, SIDE))


quick = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
several = settings(quick, max_examples=12)  # of many commands each
slow = settings(quick, max_examples=4)


@quick
@given(tree=trees())
def test_data(tree: dict[str, Node]) -> None:
    with planted(tree) as folder:
        assert output(main, "data", folder, "--side", SIDE)[0] in (0, 2)


@quick
@given(tree=inspections(), sound=st.sampled_from(((), ("--sound", "good"), ("--sound", "fine"), ("--sound", "\udcff"))))
def test_data_for_inspection(tree: dict[str, Node], sound: tuple[str, ...]) -> None:
    with planted(tree) as folder:
        assert output(main, "data", folder, "--side", SIDE, *sound)[0] in (0, 2)


@quick
@given(tree=trees((0, 2, 6)), text=csv_texts)
def test_data_of_a_table(tree: dict[str, Node], text: bytes) -> None:
    with planted(tree) as folder:
        table = folder / "list.csv"
        if not os.path.lexists(table):
            table.write_bytes(text)
        assert output(main, "data", table, "--side", SIDE)[0] in (0, 2)


@several
@given(tree=inspections())
def test_images_with_defects_for_a_bundle(bundle: Path, tree: dict[str, Node]) -> None:
    with planted(tree) as folder:
        own = shutil.copytree(bundle, folder.parent / "models" / "tiny" / "1")
        for arguments in (
            ("evaluate", own, "--data", folder),
            ("evaluate", own, "--data", folder, "--sound", "good"),
            ("calibrate", own, folder, "--anomalies", folder, "--false-alarm-rate", "0.3"),
        ):
            assert output(main, *arguments)[0] in (0, 2), arguments


@slow
@given(tree=inspections((20, 40)), mode=st.sampled_from(("decoder", "full")))
def test_training_for_inspection(tree: dict[str, Node], mode: str) -> None:
    with planted(tree) as folder:
        run = folder.parent / "run"
        arguments = ("run", *recipe(folder, folder, mode), "--run", run, "--models", folder.parent / "models")
        assert output(main, *arguments)[0] in (0, 2)


@several
@given(tree=trees())
def test_images_for_a_bundle(bundle: Path, tree: dict[str, Node]) -> None:
    with planted(tree) as folder:
        models = folder.parent / "models"
        own = shutil.copytree(bundle, models / "tiny" / "1")
        for arguments in (
            ("evaluate", own, "--data", folder),
            ("evaluate", own, "--data", folder, "--part", "train"),
            ("calibrate", own, folder, "--false-alarm-rate", "0.3"),
            ("calibrate", own, folder, "--threshold", "f1", "--anomalies", folder, "--false-alarm-rate", "0.3"),
            ("graft", folder, "--base", own, "--models", models, "--name", "grafted"),
            ("graft", folder, "--base", models, "--models", models, "--name", "nearest"),
        ):
            assert output(main, *arguments)[0] in (0, 2), arguments
        assert output(score, folder, "--models", models, "--model", "tiny@1", "--out", models / "out.csv")[0] in (
            0,
            1,
            2,
        )


@several
@given(tree=trees())
def test_a_folder_of_images_in_the_place_of_a_bundle_a_run_or_a_recipe(bundle: Path, tree: dict[str, Node]) -> None:
    with planted(tree) as folder:
        for arguments in (
            ("evaluate", folder, "--data", bundle),
            ("calibrate", folder, bundle),
            ("graft", bundle, "--base", folder),
            ("export", folder, "--models", folder),
            ("report", folder),
            ("run", folder),
            ("transfer", RECIPE, "--from", folder, "--run", folder.parent / "run"),
            ("pretrain", RECIPE, "--run", folder, "--resume"),
        ):
            assert output(main, *arguments)[0] == 2, arguments
        assert output(score, bundle, "--models", folder, "--out", folder.parent / "out.csv")[0] == 2


def recipe(source: Path, target: Path, mode: str) -> list[str]:
    changes = (
        f"source={source}",
        f"target={target}",
        f"transfer.mode={mode}",
        "name=odd",
        "false_alarm_rate=0.3",
        f"input.height={SIDE}",
        f"input.width={SIDE}",
        "network.kind=dense",
        "network.hidden=8",
        "network.latent=4",
        "pretrain.epochs=1",
        "transfer.epochs=1",
        "transfer.reads=embedding",
        "decoder.epochs=1",
    )
    return [RECIPE, *(word for change in changes for word in ("--set", change))]


@slow
@given(tree=trees((20, 40), 2), other=trees((20, 40), 2), mode=st.sampled_from(("decoder", "head", "episodic", "dann")))
def test_training(tree: dict[str, Node], other: dict[str, Node], mode: str) -> None:
    with planted(tree) as folder:
        source = plant(other, folder.parent / "other")
        run, out = folder.parent / "run", folder.parent / "out"
        for arguments in (
            ("pretrain", *recipe(source, folder, mode), "--run", run),
            ("transfer", *recipe(source, folder, mode), "--run", run, "--resume"),
            ("compare", *recipe(folder, folder, mode), "--out", out, "--arms=pixels", "--budgets=all", "--seeds=2"),
        ):
            assert output(main, *arguments)[0] in (0, 2), arguments


def test_classes_of_any_name_come_to_a_bundle(tmp_path: Path) -> None:
    apart = (".ipynb_checkpoints", ".DS_Store", "train", "test")
    classes = sorted(name for name in ODD_NAMES if name == printable(name) and name not in apart)
    folder = plant({name: images(14, 11 * index) for index, name in enumerate(classes)}, tmp_path / "tree")
    status, text = output(
        main, "run", *recipe(folder, folder, "head"), "--run", tmp_path / "run", "--models", tmp_path / "models"
    )
    assert status == 0, text
    assert output(main, "report", tmp_path / "run")[0] == 0
    made = load(tmp_path / "models/odd/1")
    assert made.manifest.classifier is not None
    assert made.manifest.classifier.labels == tuple(classes)
    assert output(main, "evaluate", tmp_path / "models/odd/1", "--data", folder)[0] == 0


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_in_processes_of_their_own(tmp_path: Path, bundle: Path, encoding: str) -> None:
    """Names that no encoding holds, in arguments and in what is printed."""
    tree: dict[str, Node] = {"ä": images(3, 0), "日本語": images(3, 40)}
    folder = plant(tree, tmp_path / os.fsdecode(b"odd\xff\n"))
    models = tmp_path / os.fsdecode(b"models\xff")
    for status, arguments in (
        (0, ("data", folder)),
        (0, ("graft", folder, "--base", bundle, "--models", models)),
        (2, ("run", RECIPE, "--set", f"source={folder}", "--set", f"target={folder}", "--run", tmp_path / "run")),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "training", *map(os.fsencode, arguments)],
            cwd=ROOT,
            env=environment(PYTHONIOENCODING=encoding, GRAFT_DATA=str(tmp_path)),
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr
        if encoding == "utf-8" and arguments[0] == "graft":
            assert done.stdout == os.fsencode(models / "odd" / "1\n")
