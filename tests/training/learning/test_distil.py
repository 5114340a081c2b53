"""A small network learns from EfficientNet-Lite0 which texture a picture has, without labels."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.bundle import load
from training.__main__ import main
from training.data.imageset import ImageSet
from training.data.material import Material
from training.errors import TrainingError
from training.learning.distil import difference, distil
from training.learning.inference import read
from training.learning.journal import Journal
from training.learning.teacher import Teacher
from training.learning.workshop import Workshop, open_workshop
from training.measure.probes import Probe
from training.networks import weights
from training.recipe import DistilMode, Input, Network, Pretrain, Recipe

SIDE = 32
KINDS = ("across", "down", "checks", "dots")
MODE = DistilMode(teacher_side=32)
STAGE = Pretrain(epochs=12, batch=16, rate=3e-3)
NETWORK = Network(width=8, most=32, latent=32)


@pytest.fixture(scope="module", autouse=True)
def published() -> None:
    try:
        weights.path_of(MODE.teacher_network)
    except TrainingError as error:
        pytest.skip(f"{error}")


def picture(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A texture of any period, place and two colours."""
    period = int(rng.integers(5, 10))
    (y, x), (down, across) = np.mgrid[:SIDE, :SIDE], rng.integers(0, period, 2)
    y, x = (y + down) % period, (x + across) % period
    upper, left = y < period / 2, x < period / 2
    dot = (y - period / 2) ** 2 + (x - period / 2) ** 2 < (period / 3) ** 2
    on = {"across": upper, "down": left, "checks": upper ^ left, "dots": dot}[kind]
    one, other = rng.integers(0, 256, (2, 3))
    return (np.where(on[..., None], one, other) + rng.normal(0, 10, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def drawn(count: int, seed: int) -> ImageSet:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(KINDS)
    return ImageSet(np.stack([picture(KINDS[label], rng) for label in labels]), labels, KINDS)


@pytest.fixture(scope="module")
def material() -> Material:
    train, validation, test = drawn(320, 1), drawn(48, 2), drawn(200, 3)
    spec = Input(height=SIDE, width=SIDE, channels=3).spec()
    return Material(spec, train, train, validation, test, train, train, validation, validation, test)


def shop(folder: Path, network: Network = NETWORK) -> Workshop:
    recipe = Recipe(name="x", title="", source="a", target="a", network=network, transfer=MODE)
    return open_workshop(recipe, (SIDE, SIDE, 3), folder, untrained=False)


def probed(own: Workshop, material: Material, labelled: int) -> float:
    """Accuracy of a linear head on the code, fitted to a few labels."""
    few = material.train.take(np.arange(labelled))
    head = Probe(read(own, few, "embedding"), few.labels, len(KINDS))
    return head.accuracy(read(own, material.test, "embedding"), material.test.labels)


def test_what_the_teacher_knows_helps_where_labels_are_few(material: Material, tmp_path: Path) -> None:
    own = shop(tmp_path)
    before = probed(own, material, 40)
    distil(own, material, STAGE, MODE)
    after, teacher = probed(own, material, 40), Teacher(MODE, own.device).accuracy(material)
    assert teacher > 0.85, "of a head that saw all labels"
    assert after > before + 0.3, f"{before:.3f} of random weights, {after:.3f} distilled"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["distil"] * STAGE.epochs
    assert lines[-1]["validation_loss"] < 0.8 * lines[0]["validation_loss"]


def test_the_lower_stages_of_a_backbone_learn_from_all_of_it(material: Material, tmp_path: Path) -> None:
    own = shop(tmp_path, Network(backbone="efficientnet-lite0", stages=3))
    distil(own, material, STAGE.model_copy(update={"epochs": 4, "rate": 1e-3}), MODE)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation_loss"] < 0.8 * lines[0]["validation_loss"]


class Interrupted(Journal):
    def write(self, **facts: float | str) -> None:
        super().write(**facts)
        if facts["epoch"] == 1:
            raise KeyboardInterrupt


def test_a_distillation_that_was_cut_off_ends_with_the_same_weights(material: Material, tmp_path: Path) -> None:
    stage = STAGE.model_copy(update={"epochs": 3})
    mode = MODE.model_copy(update={"views": 1})
    small = replace(
        material, source_train=(few := material.train.take(np.arange(64))), source=few, target=few, train=few
    )
    encoders = {}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        own = shop(tmp_path / name)
        if name == "cut":
            with pytest.raises(KeyboardInterrupt):
                distil(replace(own, journal=Interrupted(tmp_path / "cut/metrics.jsonl")), small, stage, mode)
            own = shop(tmp_path / name)
        distil(own, small, stage, mode)
        encoders[name] = own.net.encoder.state_dict()
    assert all(torch.equal(value, encoders["cut"][name]) for name, value in encoders["whole"].items())
    again = shop(tmp_path / "cut")
    distil(again, small, stage, mode)  # it is done
    assert all(torch.equal(value, encoders["cut"][name]) for name, value in again.net.encoder.state_dict().items())


def test_the_difference_is_of_direction_and_size() -> None:
    goal = torch.randn(50, 8)
    assert difference(goal, goal).item() == pytest.approx(0, abs=1e-6)
    assert difference(2 * goal, goal).item() == pytest.approx(goal.square().mean().item(), rel=1e-5)
    assert difference(-goal, goal).item() == pytest.approx(2 + 4 * goal.square().mean().item(), rel=1e-5)


def test_a_folder_is_distilled_from_unlabelled_pictures_too_and_the_report_says_what_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for part, count in (("train", 30), ("test", 10)):
            (tmp_path / "labelled" / part / kind).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(kind, rng)).save(tmp_path / "labelled" / part / kind / f"{number}.png")
    (tmp_path / "more").mkdir()
    for number in range(40):
        Image.fromarray(picture(KINDS[number % 4], rng)).save(tmp_path / "more" / f"{number}.png")
    changes = [
        *(f"source={tmp_path / 'more'}", f"target={tmp_path / 'labelled'}", "false_alarm_rate=0.2"),
        *("input.height=32", "input.width=32"),
        *("pretrain.epochs=2", "transfer.epochs=2", "transfer.views=1", "transfer.teacher_side=32"),
    ]
    sets = [part for change in changes for part in ("--set", change)]
    run, models = tmp_path / "run", tmp_path / "models"
    assert main(["run", "photos-small", "--run", str(run), "--models", str(models), *sets]) == 0
    stages = [json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["distil"] * 2 + ["labels"] * 2 + ["test"]
    bundle = load(models / "photos-small/1")
    stated = {metric.name: metric for metric in bundle.manifest.metrics}
    assert stated["teacher_accuracy"].images == 40
    assert 0.25 < stated["teacher_accuracy"].value <= 1
    kept = stated["accuracy"].value / stated["teacher_accuracy"].value
    page = (models / "photos-small/1/report.html").read_text()
    assert re.search(rf"The teacher, a linear head on efficientnet-lite0.*keeps {kept:.1%} of that", page)
    assert "reconstruct" not in bundle.operations
