"""What people type wrong: each ends with one sentence that names the thing and the mend, exit code 2, nothing lost."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support import draw_folder, save_tiny

import training
from training.__main__ import _is_out_of_memory, main
from training.tracking.index import INDEX_FILE

PARENT = Path(training.__file__).parents[1]
SETS = ["network.kind=dense", "network.hidden=8", "network.latent=4", "pretrain.epochs=1", "decoder.epochs=1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw_folder(tmp_path / "good", 30, seed=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*changes: str, target: str = "good", recipe: str = "seed") -> list[str]:
    changes = (f"source={target}", f"target={target}", "transfer.epochs=1", "false_alarm_rate=0.2", *SETS, *changes)
    return ["run", recipe, "--run", "run", *(part for change in changes for part in ("--set", change))]


def empty(here: Path) -> list[str]:
    (here / "bad").mkdir()
    return run(target="bad")


def one_class(here: Path) -> list[str]:
    """In arrays: of a folder the one class is taken as the sound one."""
    (here / "bad").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for part in ("train", "test"):
        np.savez(here / "bad" / f"{part}.npz", images=images, labels=np.zeros(40, int), classes=["bag"])
    return run(target="bad")


def text_files(here: Path) -> list[str]:
    (here / "bad/notes").mkdir(parents=True)
    (here / "bad/notes/a.txt").write_text("no image")
    return run(target="bad")


def text_called_png(here: Path) -> list[str]:
    for number in range(10):
        (here / f"good/bag/{number}.png").write_text("no image")
    return run()


def idx(here: Path, images: bytes) -> list[str]:
    (here / "bad").mkdir()
    for stem in ("train", "t10k"):
        (here / f"bad/{stem}-images-idx3-ubyte").write_bytes(images)
        (here / f"bad/{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 5) + bytes(5))
    return run(target="bad")


def wrong_magic(here: Path) -> list[str]:
    return idx(here, b"\x89PNG" + bytes(5 * 784))


def cut_idx(here: Path) -> list[str]:
    return idx(here, struct.pack(">4BIII", 0, 0, 8, 3, 5, 28, 28) + bytes(100))


def npz_without_images(here: Path) -> list[str]:
    (here / "bad").mkdir()
    np.savez(here / "bad/train.npz", pictures=np.zeros(3))
    return run(target="bad")


def unreadable_weights(here: Path) -> list[str]:
    (here / "resnet18.pth").write_text("no weights")
    return run("network.backbone=resnet18", "network.weights=resnet18.pth")


def another_recipe(here: Path) -> list[str]:
    assert main(["pretrain", *run()[1:]]) == 0
    return [*run("seed=7"), "--resume"]


def run_there_already(here: Path) -> list[str]:
    (here / "run").mkdir()
    return run()


def run_is_a_file(here: Path) -> list[str]:
    (here / "run").write_text("mine")
    return [*run(), "--resume"]


def not_pretrained(here: Path) -> list[str]:
    shutil.copytree(here / "good", here / "other")
    return ["transfer", *run()[1:], "--from", "other"]


def not_trained(here: Path) -> list[str]:
    assert main(["pretrain", *run()[1:]]) == 0
    return ["export", "run"]


def not_published(here: Path) -> list[str]:
    assert main(["pretrain", *run()[1:]]) == 0
    return ["report", "run"]


def broken_checkpoint(here: Path) -> list[str]:
    assert main(["pretrain", *run()[1:]]) == 0
    (here / "run/checkpoints/pretrain.pt").write_bytes(b"PK")
    return [*run(), "--resume"]


def models_is_a_file(here: Path) -> list[str]:
    (here / "models").write_text("mine")
    return run()


def few_normals(here: Path) -> list[str]:
    bundle = save_tiny(here / "models")
    return ["calibrate", str(bundle), "good", "--false-alarm-rate", "0.001"]


def few_images(here: Path) -> list[str]:
    for path in (here / "good").rglob("*.png"):
        if path.stem not in "01":
            path.unlink()
    return run()


BAD: list[tuple[Callable[[Path], list[str]], str]] = [
    (empty, "bad: no images in it"),
    (one_class, "the target has one class, bag"),
    (text_files, "directly below it (but it has other files (1): notes/a.txt; folders without images (1): notes): put"),
    (text_called_png, "images cannot be read: bag/0.png (not an image"),
    (wrong_magic, "train-images-idx3-ubyte: not an IDX file of bytes"),
    (cut_idx, "download it again"),
    (npz_without_images, "train.npz: `images` is missing"),
    (unreadable_weights, "network.weights=resnet18.pth: cannot be read as torch weights"),
    (another_recipe, "run: the run has another recipe, or other --set values"),
    (run_there_already, "run already exists: resume it with --resume"),
    (run_is_a_file, "run: not a run"),
    (not_pretrained, "other: not a run"),
    (not_trained, "run: not trained to its end"),
    (not_published, "run: the run has published nothing yet"),
    (broken_checkpoint, "pretrain.pt: cannot be read"),
    (models_is_a_file, "the bundle cannot be written"),
    (few_normals, "at least 999 are needed"),
    (lambda _: run("false_alarm_rate=0.001"), "at least 999 are needed; raise false_alarm_rate"),
    (few_images, "leave none for validation"),
    (lambda _: run(recipe="sead"), "no recipe 'sead': ours are"),
    (lambda _: run("pretrain.epoch=3"), "pretrain.epoch: Extra inputs are not permitted"),
    (lambda _: run("seed=-1"), "seed: Input should be greater than or equal to 0"),
    (lambda _: run(target=""), "'': neither a named data set"),
    (lambda _: run(target='"\\u0000"'), "\\x00: neither a named data set"),
    (lambda _: run(target="nowhere"), "nowhere: neither a named data set (mnist, fashion-mnist, mnist-textured,"),
    (lambda _: run("split.test=0.9999"), "cannot give"),
    (lambda _: run("split.groups=(x+)"), "split.groups=(x+): does not match"),
    (
        lambda _: run('anomaly.distances=["likelihood"]'),
        "likelihood: reconstruction, patches, or thumbnail",
    ),
    (lambda _: run("transfer.augment.shift=2"), "with mode head the encoder is frozen"),
    (lambda _: run("decoder.augment.shift=2"), "decoder.augment"),
    (lambda _: ["evaluate", "nowhere/1"], "nowhere/1"),
    (lambda _: ["run", "seed", "--resume"], "--resume needs --run"),
    (lambda _: ["data", "good", "--download"], "good cannot be downloaded, only mnist, fashion-mnist"),
    (lambda _: run("pretrain.rate=1e30"), "the loss is"),
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("prepare", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_it_is_named_in_one_sentence_and_nothing_is_lost(
    prepare: Callable[[Path], list[str]], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = prepare(here)
    before = contents(here)
    capsys.readouterr()
    assert main(arguments) == 2
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    assert last.startswith("graft-train: ")
    assert message in last
    assert output.out == ""
    after = contents(here)
    assert all(
        after[name].startswith(data) if Path(name).name == INDEX_FILE else after[name] == data  # of runs, it grows
        for name, data in before.items()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "b", "n", "--false-alarm-rate", "few"], "--false-alarm-rate: few is not between 0 and 1"),
        (["calibrate", "b", "n", "--false-alarm-rate", "nan"], "--false-alarm-rate: nan is not between 0 and 1"),
        (["calibrate", "b", "n", "--false-alarm-rate", "1"], "--false-alarm-rate: 1 is not between 0 and 1"),
        (["calibrate", "b", "n", "--seed", "-1"], "--seed: -1 is not a whole number from 0"),
        (["calibrate", "b", "n", "--seed", "1e3"], "--seed: 1e3 is not a whole number from 0"),
        (["data", "d", "--side", "0"], "--side: 0 is not a whole number from 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real one, of 256 KB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "graft", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_checkpoint_before(here: Path, full_disk: Path) -> None:
    """The first checkpoint fits, the next does not: a run that is resumed elsewhere has lost an epoch at the most."""
    folder = full_disk / "run"
    arguments = run("network.hidden=12", "pretrain.epochs=9", target=str(here / "good"))
    arguments[arguments.index("--run") + 1] = str(folder)
    command = [sys.executable, "-m", "training", *arguments, "--models", str(here / "models")]
    done = subprocess.run(command, cwd=PARENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "cannot be written" in last
    assert "Traceback" not in done.stderr
    assert not (here / "models").exists()


@pytest.mark.parametrize("allocate", [lambda: np.empty(2**60, np.uint8), lambda: torch.empty(2**60, dtype=torch.uint8)])
def test_what_does_not_fit_into_memory_is_known_from_other_errors(allocate: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as found:
        allocate()
    assert _is_out_of_memory(found.value)
    assert not _is_out_of_memory(RuntimeError("the size of tensor a must match"))
