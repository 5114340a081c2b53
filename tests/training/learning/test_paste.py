"""A network learns to find pasted pieces, or one for each fold, which has not seen it; and the recipe inspect-own."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import draw_inspection, serving

from app.bundle import Bundle, load
from app.settings import Settings
from training.__main__ import main
from training.data.folds import folds_of
from training.data.imageset import ImageSet
from training.data.material import Material
from training.errors import TrainingError
from training.learning.journal import Journal
from training.learning.paste import covering, learn_to_find
from training.learning.workshop import Workshop, open_workshop
from training.recipe import DecoderStage, Input, Network, PasteMode, Recipe, Score

SHAPE = 40, 48, 1
MODE = PasteMode(epochs=1, samples=16, batch=8, side=32)


SIDE = 64
SHORTER = (
    *("input.height=64", "input.width=64", "network.width=8", "network.most=16", "name=surfaces"),
    *("transfer.epochs=5", "transfer.samples=256", "transfer.side=48", "anomaly.folds=2"),
)


def surfaces(count: int, seed: int = 0) -> ImageSet:
    images = np.random.default_rng(seed).integers(90, 130, (count, *SHAPE), dtype=np.uint8)
    return ImageSet(images, np.zeros(count, np.int64), ("good",), sound="good")


def recipe(mode: PasteMode = MODE, folds: int = 3) -> Recipe:
    return Recipe(
        name="own",
        title="pieces",
        source="set",
        target="set",
        network=Network(kind="unet", width=4, most=8),
        input=Input(height=SHAPE[0], width=SHAPE[1]),
        transfer=mode,
        decoder=DecoderStage(epochs=0),
        anomaly=Score(distances=("patches",), folds=folds),
    )


def material(of: Recipe, data: ImageSet) -> Material:
    """Three images for validation."""
    few, most = data.take(np.arange(3)), data.take(np.arange(3, len(data)))
    test = surfaces(2, seed=9)
    return Material(of.input.spec(), data, most, few, test, data, most, few, data, test)


def learnt(folder: Path, of: Recipe, data: ImageSet) -> Workshop:
    workshop = open_workshop(of, SHAPE, folder, untrained=True)
    learn_to_find(workshop, material(of, data), of)
    return workshop


def marks(workshop: Workshop, images: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        found = workshop.net.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).marks
    assert found is not None
    return found


def test_a_fold_s_network_learns_nothing_from_the_fold(tmp_path: Path) -> None:
    """Other images in the first fold: its network becomes what it was, the others do not."""
    data, of = surfaces(12), recipe()
    folds, _ = folds_of(data, 3, of.split, of.seed)
    changed = data.images[:].copy()
    changed[folds == 0] = 255 - changed[folds == 0]
    shown = surfaces(2, seed=5).images[:]
    one, other = (
        marks(learnt(tmp_path / name, of, replace(data, images=images)), shown)
        for name, images in (("one", data.images), ("other", changed))
    )
    assert one.shape == (2, 3, 10, 12)
    assert [torch.equal(one[:, number], other[:, number]) for number in range(3)] == [True, False, False]
    assert not torch.equal(one[:, 0], one[:, 1])


def test_a_finished_network_is_not_trained_again(tmp_path: Path) -> None:
    data, of = surfaces(12), recipe()
    first = marks(learnt(tmp_path, of, data), data.images[:])
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert torch.equal(marks(learnt(tmp_path, of, data), data.images[:]), first)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert lines.count('"paste-2"') == 1


def test_without_folds_one_network_is_trained_and_one_image_is_too_few(tmp_path: Path) -> None:
    of = recipe(folds=0)
    assert marks(learnt(tmp_path, of, surfaces(6)), surfaces(2).images[:]).shape == (2, 1, 10, 12)
    with pytest.raises(TrainingError, match="two images are needed"):
        learnt(tmp_path / "few", of, surfaces(4))
    with pytest.raises(TrainingError, match="5 images in 3 folds: marks need two in each"):
        learnt(tmp_path / "single", recipe(), surfaces(5))


def test_a_place_has_a_defect_if_one_of_its_pixels_has() -> None:
    changed = torch.zeros(1, 8, 10, dtype=torch.bool)
    changed[0, 3, 9] = True
    expected = torch.zeros(1, 1, 2, 3)
    expected[0, 0, 0, 2] = 1
    assert torch.equal(covering(changed, (2, 3)), expected)


def of_recipe(data: Path) -> list[str]:
    return [part for each in (f"source={data}", f"target={data}", *SHORTER) for part in ("--set", each)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    data = draw_inspection(folder / "set", sound=40, defects=20, side=SIDE)
    run = ["run", "inspect-own", *of_recipe(data), "--models", str(folder / "models"), "--run", str(folder / "run")]
    assert main(run) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(published: Path) -> Bundle:
    return load(published / "models/surfaces/1")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_it_finds_defects_that_it_has_never_seen(bundle: Bundle) -> None:
    metrics = {metric.name: metric.value for metric in bundle.manifest.metrics}
    assert metrics["image_auroc"] > 0.9
    assert metrics["pixel_auroc"] > 0.8
    assert metrics["false_alarm_rate"] <= 0.3
    assert metrics["false_region_rate"] <= 0.3
    anomaly = bundle.manifest.anomaly
    assert anomaly is not None
    assert ([each.name for each in anomaly.distances], anomaly.calibrated_on) == (["patches"], 40)
    assert bundle.manifest.provenance.weights is None
    assert bundle.decoder is None


def test_it_is_served_with_map_and_regions_where_the_defect_is(published: Path) -> None:
    """In the picture's own pixels, which are twice as many as the network's input has."""
    rng = np.random.default_rng(3)
    surface = rng.integers(90, 130, (SIDE, SIDE), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    surface[70:84, 20:34] = 255
    with serving(Settings(models=published / "models")) as client:
        files = {"image": ("surface.png", png(surface), "image/png")}
        answer = client.post("/v1/anomaly?regions=true&heatmap=true", files=files)
        assert answer.status_code == 200, answer.text
        [result] = answer.json()["results"]
        assert result["anomalous"]
        left, top, right, bottom = result["regions"][0]["box"]
        assert left < 34
        assert right > 20
        assert top < 84
        assert bottom > 70
        raw = client.post("/v1/anomaly?heatmap=true", files=files, headers={"Accept": "application/x-npy"})
        map_ = np.load(io.BytesIO(raw.content)).squeeze()
        row, column = (np.array(np.unravel_index(map_.argmax(), map_.shape)) + 0.5) * (2 * SIDE / len(map_))
        assert 66 < row < 88
        assert 16 < column < 38


def test_a_trained_run_is_published_again_from_its_weights(published: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Those of every fold: the threshold is the same."""
    assert main(["export", str(published / "run"), "--models", str(tmp_path)]) == 0
    again = load(tmp_path / "surfaces/1").manifest.anomaly
    assert again is not None
    assert bundle.manifest.anomaly is not None
    assert again.threshold == pytest.approx(bundle.manifest.anomaly.threshold, rel=1e-3)
    epochs = [json.loads(line) for line in (published / "run/metrics.jsonl").read_text().splitlines()]
    assert {"paste-1", "paste-2"} <= {line["stage"] for line in epochs}


def test_calibration_leaves_the_marks_as_they_are(published: Path, bundle: Bundle) -> None:
    normals = str(published / "set/test/good")
    arguments = ["calibrate", str(published / "models/surfaces/1"), normals, "--false-alarm-rate", "0.2"]
    assert main(arguments) == 0
    after = load(published / "models/surfaces/2")
    assert after.manifest.files["patches.onnx"] == bundle.manifest.files["patches.onnx"]
    assert after.manifest.anomaly != bundle.manifest.anomaly
    assert after.peaks is not None
    assert len(after.peaks) == 10


def test_labels_are_not_compared(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "inspect-own", *of_recipe(published / "set"), "--out", str(tmp_path / "c")]) == 2
    assert "network.kind=unet finds defects" in capsys.readouterr().err


class Stopping(Journal):
    """Ctrl-C in the second network's first epoch."""

    def write(self, **facts: float | str) -> None:
        super().write(**facts)
        if facts.get("stage") == "paste-2":
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_networks(tmp_path: Path) -> None:
    data, of = surfaces(12), recipe(MODE.model_copy(update={"epochs": 2}))
    whole = learnt(tmp_path / "whole", of, data)
    workshop = open_workshop(of, SHAPE, tmp_path / "parts", untrained=True)
    with pytest.raises(KeyboardInterrupt):
        learn_to_find(replace(workshop, journal=Stopping(tmp_path / "parts/metrics.jsonl")), material(of, data), of)
    parts = learnt(tmp_path / "parts", of, data)
    assert torch.equal(marks(parts, data.images[:]), marks(whole, data.images[:]))
