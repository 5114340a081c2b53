"""A run on pictures larger than a tile, of several sizes, from data to calibration."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.bundle import load
from app.bundle.manifest import ANOMALY_MAP
from training import recipe
from training.__main__ import main
from training.data.imageset import ImageSet
from training.data.pictures import Pictures
from training.data.read import read_part
from training.errors import TrainingError
from training.measure import tiled
from training.measure.maps import highest, maps_of

SIZES = ((150, 210), (170, 130), (40, 220))  # height, width; the last is lower than a tile of 64


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = rng.normal(size=(height // 4 + 1, width // 4 + 1)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(128 + 20 * smooth + 4 * rng.normal(size=(height, width)), 0, 255).astype(np.uint8)


def draw(folder: Path, sound: int, tested: int) -> Path:
    """train/good, test/good and test/spot: textures of several sizes, on which a spot of 9 pixels may lie."""
    rng = np.random.default_rng(0)
    for part, kind, count in (("train", "good", sound), ("test", "good", tested), ("test", "spot", tested)):
        for number in range(count):
            pixels = texture(rng, *SIZES[number % 3])
            if kind == "spot":
                mask = np.zeros_like(pixels)
                top, left = (int(rng.integers(10, side - 20)) for side in pixels.shape)
                mask[top : top + 9, left : left + 9] = 255
                pixels[mask > 0] = 5
                where = folder / "ground_truth" / "spot"
                where.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(where / f"{number:03}_mask.png")
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / kind / f"{number:03}.png")
    return folder


SETTINGS = ["input.tiles=64", "input.overlap=32", "anomaly.patches=200", "anomaly.folds=4"]


def settings(data: Path) -> list[str]:
    return [f"source={data}", f"target={data}", "name=spots", *SETTINGS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a set, a run and its bundle."""
    folder = tmp_path_factory.mktemp("tiles")
    data = draw(folder / "set", sound=24, tested=6)
    changes = [argument for each in settings(data) for argument in ("--set", each)]
    assert main(["run", "inspect", *changes, "--models", str(folder / "models"), "--run", str(folder / "run")]) == 0
    return folder


def test_a_run_on_large_pictures_finds_small_defects_and_says_where(trained: Path) -> None:
    bundle = load(trained / "models/spots/1")
    stated = bundle.manifest
    assert stated.input.shape == (64, 64, 3)
    assert stated.input.tiles is not None
    assert (stated.input.tiles.overlap, stated.input.tiles.scale) == (32, 1)
    assert [tensor.name for tensor in stated.graphs.encoder.outputs] == ["embedding", "patch_features"]
    assert stated.anomaly is not None
    assert stated.anomaly.calibrated_on == 24
    assert bundle.peaks is not None
    assert len(bundle.peaks) == 24
    values = {metric.name: metric.value for metric in stated.metrics}
    assert values["image_auroc"] > 0.9
    assert values["pixel_auroc"] > 0.9
    assert values["aupro_30"] > 0.7
    assert {"false_alarm_rate", "false_region_rate", "recall_at_threshold"} <= set(values)
    assert "<img" in (trained / "run/report.html").read_text()


def test_evaluation_and_calibration_take_pictures_of_any_size(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = trained / "models/spots/1"
    assert main(["evaluate", str(bundle), "--data", str(trained / "set")]) == 0
    printed = capsys.readouterr().out
    assert "AUPRO 30 %" in printed
    measured = {m["name"]: m["value"] for m in json.loads((bundle / "manifest.json").read_text())["metrics"]}
    assert f"false_alarm_rate {measured['false_alarm_rate']:.4f} over 6 images" in printed
    assert main(["calibrate", str(bundle), str(trained / "set"), "--false-alarm-rate", "0.2"]) == 0
    after = load(trained / "models/spots/2")
    assert after.manifest.input == load(bundle).manifest.input
    assert after.manifest.anomaly is not None
    assert (after.manifest.anomaly.calibrated_on, after.manifest.anomaly.false_alarm_rate) == (12, 0.2)


def test_a_resumed_run_and_the_report_read_the_pictures_again(trained: Path) -> None:
    assert main(["report", str(trained / "run")]) == 0
    assert main(["export", str(trained / "run"), "--models", str(trained / "again")]) == 0
    once, again = (load(trained / name / "spots/1") for name in ("models", "again"))
    assert once.manifest.anomaly == again.manifest.anomaly


def test_pictures_stay_files_that_are_decoded_when_they_are_read(trained: Path) -> None:
    data = read_part(str(trained / "set"), "train", load(trained / "models/spots/1").manifest.input)
    assert isinstance(data.images, Pictures)
    assert [tuple(size) for size in data.images.sizes[:3].tolist()] == list(SIZES)
    some = data.take(np.array([4, 2]))
    assert isinstance(some.images, Pictures)
    assert some.images[1].shape == (*SIZES[2], 3)
    whole = np.asarray(Image.open(trained / "set/train/good/004.png"))
    assert np.array_equal(some.images[0], np.repeat(whole[..., None], 3, axis=2))
    assert list(some.hashes()) == [list(data.hashes())[index] for index in (4, 2)]
    assert some.fingerprint() != data.fingerprint()


def test_what_was_measured_once_is_not_measured_again(trained: Path) -> None:
    bundle = load(trained / "models/spots/1")
    data = read_part(str(trained / "set"), "test", bundle.manifest.input)
    first = tiled.measured(bundle, data, "")
    assert isinstance(data.images, Pictures)
    for path in data.images.files.paths:
        path.rename(path.with_suffix(".away"))
    try:
        again = tiled.measured(bundle, data.take(np.array([3, 0])), "")
        assert np.array_equal(again.distances, first.distances[[3, 0]])
        np.testing.assert_array_equal(highest(maps_of(bundle, data, "")), [map_.max() for map_ in first.maps])
        assert tiled.embeddings(bundle, data, "").shape == (12, bundle.manifest.latent_size)
        with pytest.raises(TrainingError, match="could be read before"):
            data.images[0]
    finally:
        for path in data.images.files.paths:
            path.with_suffix(".away").rename(path)
    alone = bundle.measure_picture(data.images[5])
    np.testing.assert_allclose(alone["patch_distance"][0], first.distances[5])
    one = ImageSet(data.images[5][None], np.array([], np.int64), ())
    np.testing.assert_allclose(tiled.measured(bundle, one, "").distances[0], first.distances[5])
    assert first.maps[5].shape == tuple(-(-side // 4) for side in data.images[5].shape[:2])
    assert alone[ANOMALY_MAP][0].shape == tuple(-(-side // 8) for side in data.images[5].shape[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["input.tiles=100"], "multiple of 32"),
        (["input.tiles=64", "input.height=128"], "with tiles=64, that is height and width: leave it out"),
        (["input.tiles=64", "input.overlap=64"], "overlap=64: must be below tiles=64"),
        (["input.overlap=64"], "overlap and scale are of tiles"),
        (["input.tiles=64", "input.resize=pad"], "keeps its shape"),
        (["input.tiles=64", 'anomaly.distances=["embedding.mahalanobis"]'], "judged by its patches alone"),
        (["input.tiles=64", "transfer.mode=head", "anomaly.folds=0"], "set transfer.mode=decoder"),
        (["input.tiles=64", "export.int8=true"], "do not take tiles yet"),
        (["input.tiles=64", "input.scale=2"], "input.scale"),
    ],
)
def test_settings_that_do_not_go_with_tiles_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe.load("inspect", changes)


def test_a_stored_recipe_with_tiles_is_read_as_it_was(tmp_path: Path) -> None:
    chosen = recipe.load("inspect", ["input.tiles=64", "input.scale=0.5"])
    assert (chosen.input.height, chosen.input.width) == (64, 64)
    recipe.write(chosen, tmp_path)
    assert recipe.read(tmp_path) == chosen


@pytest.mark.parametrize(("tiles", "overlap"), [(32, 0), (64, 32), (224, 32), (448, 64), (512, 64), (1024, 128)])
def test_neighbours_share_an_eighth_of_a_side_unless_a_recipe_says_more(tiles: int, overlap: int) -> None:
    spec = recipe.load("inspect", [f"input.tiles={tiles}"]).input.spec()
    assert spec.tiles is not None
    assert spec.tiles.overlap == overlap


def test_tiles_are_for_pictures_in_files() -> None:
    spec = recipe.load("inspect", ["input.tiles=64"]).input.spec()
    with pytest.raises(TrainingError, match="for a folder of pictures, or a CSV of them"):
        read_part("mnist", "train", spec)


def test_pictures_that_cannot_be_read_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path, sound=40, tested=1)
    (data / "train/good/007.png").write_bytes(b"none")
    found = read_part(str(data), "train", recipe.load("inspect", ["input.tiles=64"]).input.spec())
    assert len(found) == 39
    assert "left out unreadable images (1 of 40)" in capsys.readouterr().err
    assert found.images[7].shape[:2] == SIZES[8 % 3]
