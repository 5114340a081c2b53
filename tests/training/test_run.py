"""A whole recipe on images that are drawn here: from a folder to a bundle that serves what torch gave."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops
from support import spec

from app.bundle import InputSpec, load
from app.bundle.drawings import GARMENTS, garment
from app.inference.predictor import Predictor
from app.inference.repository import Repository
from training.__main__ import main
from training.data import read_folder
from training.export import Exported, to_onnx
from training.networks import build
from training.recipe import Input, Network


class Brightness:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, level: float) -> float:
        return min(255, level * self.factor)


def draw_folder(folder: Path, per_class: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for kind in GARMENTS:
        (folder / kind).mkdir(parents=True)
        for number in range(per_class):
            image = garment(kind, int(rng.integers(24, 40)))
            shifted = ImageChops.offset(image, *(int(v) for v in rng.integers(-3, 4, 2)))
            shifted.point(Brightness(rng.uniform(0.5, 1.2))).save(folder / kind / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("garments")
    draw_folder(folder / "train", 120, seed=1)
    draw_folder(folder / "test", 30, seed=2)
    return folder


@pytest.fixture(scope="module")
def recipe(images: Path) -> Path:
    path = images / "drawn.toml"
    path.write_text(f"""
name = "drawn"
title = "garments drawn by code"
source = "{images}"
target = "{images}"
false_alarm_rate = 0.05
[split]
validation = 80
calibration = 120
[pretrain]
epochs = 8
rate = 5e-3
[network]
kind = "conv-seed"
[transfer]
reads = "embedding"
epochs = 20
rate = 3e-2
[decoder]
epochs = 2
""")
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train(recipe, folder) == 0
    return folder


def train(recipe: Path, folder: Path, changes: Sequence[str] = ()) -> int:
    sets = [part for change in changes for part in ("--set", change)]
    return main(["run", str(recipe), "--models", str(folder / "models"), "--run", str(folder / "run"), *sets])


def test_the_bundle_serves_what_torch_gave(trained: Path, images: Path) -> None:
    bundle = load(trained / "models/drawn/1")
    assert bundle.manifest.classifier is not None
    assert bundle.manifest.classifier.labels == tuple(sorted(GARMENTS))
    net = build(Network(kind="conv-seed"), bundle.manifest.input.shape)
    weights = torch.load(trained / "run/weights.pt", weights_only=True)
    net.encoder.load_state_dict(weights["encoder"])
    net.decoder.load_state_dict(weights["decoder"])
    files = sorted((images / "test").rglob("*.png"))
    batch = np.stack([bundle.preprocess(path.read_bytes()) for path in files])
    with torch.no_grad():
        code = net.encode(torch.from_numpy(batch).permute(0, 3, 1, 2) / 255).code
        drawn = net.decoder(code).sigmoid().permute(0, 2, 3, 1)
        logits = code @ weights["head"]["weight"].T + weights["head"]["bias"]
    outputs = bundle.run_all(batch)
    for name, expected in (("embedding", code), ("reconstruction", drawn), ("logits", logits)):
        np.testing.assert_allclose(outputs[name], expected.numpy(), atol=1e-4 * max(1, expected.abs().max()))
    labels = [path.parent.name for path in files]
    accuracy = np.mean([c.label == label for c, label in zip(bundle.classify(batch), labels, strict=True)])
    stated = {m.name: m.value for m in bundle.manifest.metrics}
    assert stated["accuracy"] == pytest.approx(accuracy)
    assert stated["accuracy"] == pytest.approx(stated["accuracy_in_torch"], abs=0.001)
    assert accuracy > 0.9


def test_the_run_is_written_down(trained: Path, images: Path) -> None:
    stages = [json.loads(line)["stage"] for line in (trained / "run/metrics.jsonl").read_text().splitlines()]
    assert stages == ["pretrain"] * 8 + ["head"] * 20 + ["decoder"] * 2 + ["test"]
    assert json.loads((trained / "run/recipe.json").read_text())["pretrain"]["batch"] == 128
    provenance = load(trained / "models/drawn/1").manifest.provenance
    assert set(provenance.data) == {"source/train", "target/train", "target/test"}
    assert provenance.versions["torch"] == torch.__version__
    card = (trained / "models/drawn/1/card.md").read_text()
    assert re.search(r"\| accuracy \| [01]\.\d{4} \| 120 \|", card)
    published = "".join(path.read_bytes().decode("latin-1") for path in (trained / "models/drawn/1").iterdir())
    assert str(images) not in published, "a bundle names its data, not where it lay"
    assert "site-packages" not in published
    assert ".py" not in published


def test_the_same_seed_gives_the_same_weights(recipe: Path, trained: Path, tmp_path: Path) -> None:
    assert train(recipe, tmp_path) == 0
    again, first = (load(folder / "models/drawn/1").manifest for folder in (tmp_path, trained))
    for file in ("encoder.onnx", "decoder.onnx", "head.onnx"):
        assert again.files[file] == first.files[file]


def test_a_run_is_never_overwritten(recipe: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe, trained) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_finished_bundle_is_measured_again_from_the_command_line(
    trained: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(trained / "models/drawn/1")
    assert main(["evaluate", bundle, "--data", str(images)]) == 0
    stated = {m.name: m.value for m in load(Path(bundle)).manifest.metrics}
    assert f"accuracy {stated['accuracy']:.4f} over 120 images" in capsys.readouterr().out


WHERE = ("--set", "source=drawn", "--set", "target=drawn")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing"], "no recipe 'nothing'"),
        (["evaluate", "nowhere/1"], "nowhere/1"),
        (["run", "seed", *WHERE, "--set", "split.test=0.9999"], "cannot give"),
        (["run", "seed", "--set", "source=/nowhere", "--set", "target=/nowhere"], "neither a data set"),
    ],
)
def test_a_bad_command_ends_in_one_sentence(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw_folder(tmp_path / "drawn", 3, seed=0)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("graft-train: ")
    assert says in error


def test_ctrl_c_stops_without_a_traceback_and_publishes_nothing(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "run", str(recipe), "--set", "pretrain.epochs=1000"]
    process = subprocess.Popen(
        [*command, "--models", str(tmp_path / "models"), "--run", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    journal = tmp_path / "run/metrics.jsonl"
    while not journal.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.rstrip().endswith(f"go on with the same command and --run {tmp_path / 'run'} --resume")
    assert "Traceback" not in error
    assert not (tmp_path / "models").exists()


SMALL = ("network.kind=conv", "network.width=4", "network.latent=8", "pretrain.epochs=1", "transfer.epochs=2")


@pytest.mark.parametrize(
    ("mode", "reads"),
    [
        ("head", "features"),
        ("gradual", "features"),
        ("full", "embedding"),
        ("multitask", "features"),
        ("scratch", "features"),
        ("random-frozen", "embedding"),
        ("decoder", "features"),
    ],
)
def test_every_mode_ends_in_a_bundle(mode: str, reads: str, recipe: Path, tmp_path: Path) -> None:
    changes = [*SMALL, f"transfer.mode={mode}", f"transfer.reads={reads}", "transfer.class_weights=true"]
    assert train(recipe, tmp_path, changes) == 0
    bundle = load(tmp_path / "models/drawn/1")
    stages = {json.loads(line)["stage"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()}
    assert ("pretrain" in stages) == (mode not in ("scratch", "random-frozen"))
    assert ("classify" in bundle.operations) == (mode != "decoder")
    outputs = [tensor.name for tensor in bundle.manifest.graphs.encoder.outputs]
    assert outputs == (["embedding", "features"] if reads == "features" and mode != "decoder" else ["embedding"])
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    assert len(bundle.anomaly(images)) == 5


def test_a_frozen_encoder_stays_and_a_freed_one_moves(recipe: Path, tmp_path: Path) -> None:
    for mode in ("head", "full"):
        assert train(recipe, tmp_path / mode, [*SMALL, f"transfer.mode={mode}"]) == 0
    moved = {}
    for mode in ("head", "full"):
        run = tmp_path / mode / "run"
        before = torch.load(run / "checkpoints/pretrain.pt", "cpu", weights_only=True)["modules"]["encoder"]
        after = torch.load(run / "weights.pt", weights_only=True)["encoder"]
        moved[mode] = [not torch.equal(before[name], after[name]) for name in before if name.startswith("stages")]
    assert not any(moved["head"])
    assert any(moved["full"])


def test_a_test_part_of_other_classes_is_refused(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its labels would be numbered otherwise, and every number about them wrong."""
    for part in ("train", "test"):
        shutil.copytree(images / part, tmp_path / "odd" / part)
    shutil.rmtree(tmp_path / "odd/test/bag")
    assert train(recipe, tmp_path, [*SMALL, f"target={tmp_path / 'odd'}"]) == 2
    assert "they must be the same" in capsys.readouterr().err


def test_labels_are_asked_for_where_a_mode_needs_them(images: Path, recipe: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "plain" / part).mkdir(parents=True)
        for path in (images / part).rglob("*.png"):
            shutil.copy(path, tmp_path / "plain" / part / f"{path.parent.name}-{path.name}")
    changes = [*SMALL, f"target={tmp_path / 'plain'}"]
    assert train(recipe, tmp_path, changes) == 2
    assert train(recipe, tmp_path / "again", [*changes, "transfer.mode=decoder"]) == 0
    assert load(tmp_path / "again/models/drawn/1").operations == ["encode", "reconstruct", "anomaly"]


def test_colour_at_another_size_and_a_variational_code(recipe: Path, tmp_path: Path) -> None:
    changes = [*SMALL, "network.variational=true", "input.channels=3", "input.height=32", "input.width=40"]
    assert train(recipe, tmp_path, changes) == 0
    assert load(tmp_path / "models/drawn/1").manifest.input.shape == (32, 40, 3)


@pytest.mark.parametrize("stage", ["pretrain", "full"])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(stage: str, recipe: Path, tmp_path: Path) -> None:
    changes = [*SMALL, "pretrain.epochs=4", "transfer.epochs=4", "transfer.mode=full", "objective.noise=0.1"]
    assert train(recipe, tmp_path / "whole", changes) == 0
    arguments = ["run", str(recipe), "--models", str(tmp_path / "models"), "--run", str(tmp_path / "run")]
    arguments += [part for change in changes for part in ("--set", change)]
    with subprocess.Popen([sys.executable, "-m", "training", *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{stage} 2/"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "models").exists()
    assert main(arguments) == 2, "a run is not begun again by mistake"
    assert main([*arguments, "--resume"]) == 0
    whole, resumed = (
        torch.load(f / "weights.pt", weights_only=True) for f in (tmp_path / "whole/run", tmp_path / "run")
    )
    for part, weights in whole.items():
        for name, value in weights.items():
            assert torch.equal(value, resumed[part][name]), f"{part}.{name}"


def test_what_cannot_be_resumed_says_why(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", str(recipe), "--resume"]
    for arguments, says in (
        (run, "--resume needs --run"),
        ([*run, "--run", str(tmp_path / "none")], "no run to resume there"),
        ([*run, "--run", str(trained / "run"), "--set", "seed=9"], "of another recipe"),
        ([*run, "--run", str(trained / "run")], "finished, as"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err


def test_an_exported_graph_keeps_nothing_of_the_machine_it_was_made_on() -> None:
    spec = Input().spec()
    exported = Exported(build(Network(kind="conv-seed"), spec.shape), torch.nn.Linear(128, 3), spec)
    assert set(exported.files) == {"encoder.onnx", "decoder.onnx", "head.onnx"}
    for data in exported.files.values():
        model = onnx.load_from_string(data)
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert b"/" + b"torch/" not in data


def test_parity_is_required() -> None:
    """A module that answers otherwise each time cannot agree with its export."""
    from app.bundle.manifest import Tensor
    from training.errors import TrainingError
    from training.export import _require_parity

    class Drifting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0.0

        def forward(self, embedding: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return embedding * self.calls

    taken = Tensor(name="embedding", dtype="float32", shape=(-1, 4))
    given = Tensor(name="logits", dtype="float32", shape=(-1, 4))
    from app.bundle.manifest import Graph

    good = torch.nn.Identity()
    graph = Graph(file="head.onnx", input=taken, outputs=(given,))
    model = to_onnx(torch.nn.Sequential(good, torch.nn.ReLU()), graph)
    with pytest.raises(TrainingError, match=r"head\.onnx: logits of onnxruntime is off torch's by"):
        _require_parity(Drifting(), model, graph)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"]),
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=3),
    shape=st.builds(
        spec,
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        channels=st.sampled_from([1, 3]),
        resize=st.sampled_from(["stretch", "pad", "crop"]),
        filter=st.sampled_from(["box", "bilinear", "bicubic", "lanczos"]),
        background=st.sampled_from(["black", "white"]),
    ),
    seed=st.integers(0, 1000),
)
def test_training_and_serving_see_the_same_pixels(
    mode: str,
    sizes: list[tuple[int, int]],
    shape: InputSpec,
    seed: int,
    models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every format that has the mode: what a folder gives training, and what a request gives the encoder."""
    folder = tmp_path_factory.mktemp("pixels")
    rng = np.random.default_rng(seed)
    for number, size in enumerate(sizes):
        noise = rng.integers(0, 65536, size, dtype=np.uint16)
        image = Image.fromarray(noise if mode == "I;16" else (noise >> 8).astype(np.uint8))
        for kind in ("png", "jpg", "webp", "gif", "bmp", "tif"):
            path = folder / f"{number}.{kind}"
            try:
                (image if mode == "I;16" else image.convert(mode)).save(path)
            except (OSError, ValueError):  # the format has no such mode
                path.unlink(missing_ok=True)
    trained = read_folder(folder, shape)
    files = [(folder / name).read_bytes() for name in trained.names]
    tiny = load(models / "tiny/1")
    bundle = replace(tiny, manifest=tiny.manifest.model_copy(update={"input": shape}))
    served = Predictor(Repository(models), max_pixels=10**6)._decode(bundle, files)
    assert np.array_equal(served, trained.images)
