"""A recipe that leaves its input to the images: from colour images that are no squares to what the service answers."""

import base64
import csv
import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from support import serving

from app.__main__ import main as app
from app.bundle import load
from app.bundle.drawings import GARMENTS, garment
from app.settings import Settings
from training.__main__ import main

SHAPE = 32, 64, 3  # of images of 24 × 40 pixels: aspect 1.67 and a short side of 32
PAPER = 90, 60, 30


def draw(folder: Path, per_class: int, seed: int, size: tuple[int, int] = (40, 24)) -> Path:
    """Garments on brown paper, of `size` (width, height)."""
    rng = np.random.default_rng(seed)
    for kind in GARMENTS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            silhouette = garment(kind, min(size))
            picture = Image.new("RGB", size, PAPER)
            free = [int(rng.integers(0, side - min(size) + 1)) for side in size]
            picture.paste(tuple(int(level) for level in rng.integers(150, 256, 3)), tuple(free), silhouette)
            picture.save(folder / kind / f"{seed}-{number}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder / "train", 50, seed=1)
    draw(folder / "test", 10, seed=2)
    return folder


@pytest.fixture(scope="module")
def recipe(pictures: Path) -> Path:
    path = pictures.parent / "wide.toml"
    path.write_text(f"""
name = "wide"
title = "pictures that are no squares"
source = "{pictures}"
target = "{pictures}"
false_alarm_rate = 0.1
[input]
height = "auto"
width = "auto"
short_side = 32
channels = "auto"
resize = "pad"
padding = "mean"
[network]
width = 8
most = 16
[objective]
mask = 0.2
[pretrain]
epochs = 2
rate = 3e-3
[pretrain.augment]
flip = "both"
crop = 0.8
turn = 10
scale = 0.1
shift = 2
light = 0.1
[transfer]
mode = "full"
epochs = 8
batch = 32
rate = 3e-3
[transfer.augment]
erase = 0.2
[decoder]
epochs = 1
""")
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    assert main(["run", str(recipe), "--models", str(folder / "models"), "--run", str(folder / "run")]) == 0
    return folder


def png_size(encoded: str) -> tuple[int, int]:
    """(height, width)"""
    return Image.open(io.BytesIO(base64.b64decode(encoded))).size[::-1]


def test_what_was_decided_stands_in_the_run_and_in_the_manifest(trained: Path, pictures: Path) -> None:
    manifest = load(trained / "models/wide/1").manifest
    assert manifest.input.shape == SHAPE
    mean = np.mean([np.asarray(Image.open(path)) for path in (pictures / "train").rglob("*.png")], axis=(0, 1, 2))
    assert isinstance(manifest.input.padding, tuple)
    assert np.abs(mean - manifest.input.padding).max() < 3
    for kept in (json.loads((trained / "run/recipe.json").read_text()), json.loads(manifest.provenance.recipe)):
        asked = kept["input"]
        assert [asked["height"], asked["width"], asked["channels"]] == list(SHAPE)
        assert asked["padding"] == list(manifest.input.padding)


def test_every_operation_answers_in_the_shape_of_the_images(trained: Path, pictures: Path) -> None:
    files = [sorted((pictures / "test" / kind).iterdir())[0] for kind in GARMENTS]
    with serving(Settings(models=trained / "models")) as client:
        parts = [("image", (path.name, path.read_bytes(), "image/png")) for path in files]
        answer = client.post("/v1/predict?explain=true&heatmap=true", files=parts)
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        for result in results:
            assert [png_size(result[name]) for name in ("image", "heatmap", "explanation")] == [SHAPE[:2]] * 3
        assert sum(result["label"] == kind for result, kind in zip(results, GARMENTS, strict=True)) >= 3
        drawn = client.post(
            "/v1/decode", json={"embeddings": [results[0]["embedding"]]}, headers={"accept": "image/png"}
        )
        assert Image.open(io.BytesIO(drawn.content)).size == (SHAPE[1], SHAPE[0])
        assert client.get("/v1/models/wide").json()["input"] == list(SHAPE)
        for page in ("/", "/models/wide@1", "/v1/models/wide@1/report"):
            assert client.get(page).status_code == 200
        over_v2(client, trained, files, results)


def over_v2(client: httpx.Client, trained: Path, files: list[Path], results: list[dict[str, object]]) -> None:
    bundle = load(trained / "models/wide/1")
    pixels = np.stack([bundle.preprocess(path.read_bytes()) for path in files])
    [described] = client.get("/v2/models/wide").json()["inputs"]
    assert described["shape"] == [-1, *SHAPE]
    image = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    answer = client.post("/v2/models/wide/infer", json={"inputs": [image]})
    assert answer.status_code == 200, answer.text
    outputs = {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer.json()["outputs"]}
    assert outputs["reconstruction"].shape == (len(files), *SHAPE)
    np.testing.assert_allclose(outputs["embedding"], [result["embedding"] for result in results], atol=1e-4)
    turned = {**image, "shape": [len(files), SHAPE[1], SHAPE[0], SHAPE[2]]}
    assert client.post("/v2/models/wide/infer", json={"inputs": [turned]}).status_code == 400


def test_training_and_serving_see_the_same_pixels(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """An upright image between bars of the mean colour; the offline scorer reads it as the service does."""
    bundle = load(trained / "models/wide/1")
    draw(tmp_path / "upright", 1, seed=3, size=(24, 40))
    [path, *_] = sorted((tmp_path / "upright").rglob("*.png"))
    pixels = bundle.preprocess(path.read_bytes())
    assert pixels.shape == SHAPE
    assert (pixels[:, [0, 1, -2, -1]] == bundle.manifest.input.padding).all()
    out = tmp_path / "scores.csv"
    assert app(["score", str(tmp_path / "upright"), "--models", str(trained / "models"), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == len(GARMENTS)
    by_name = {Path(row["path"]).parent.name: row for row in rows}
    [score] = bundle.anomaly(pixels[None])
    assert float(by_name[path.parent.name]["score"]) == pytest.approx(score.score, abs=1e-3)


def test_the_bundle_is_measured_and_grafted_at_its_own_size(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = trained / "models/wide/1"
    assert main(["evaluate", str(bundle), "--data", str(pictures)]) == 0
    stated = {metric.name: metric.value for metric in load(bundle).manifest.metrics}
    assert f"accuracy {stated['accuracy']:.4f} over 40 images" in capsys.readouterr().out
    draw(tmp_path / "shots", 3, seed=4)
    assert main(["graft", str(tmp_path / "shots"), "--base", str(bundle), "--models", str(tmp_path / "models")]) == 0
    assert load(tmp_path / "models/shots/1").manifest.input == load(bundle).manifest.input


def test_a_run_that_is_resumed_decides_nothing_anew(
    pictures: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, run = tmp_path / "pictures", tmp_path / "run"
    draw(copy / "train", 50, seed=1)
    draw(copy / "test", 10, seed=2)
    quick = ["transfer.epochs=1", "decoder.epochs=1", f"source={copy}", f"target={copy}"]
    sets = [part for change in quick for part in ("--set", change)]
    assert main(["pretrain", str(recipe), "--run", str(run), *sets]) == 0
    decided = (run / "recipe.json").read_text()
    capsys.readouterr()
    assert main(["transfer", str(recipe), "--run", str(run), "--resume", *sets]) == 0
    assert "decide" not in capsys.readouterr().err
    assert (run / "recipe.json").read_text() == decided

    draw(copy / "train", 200, seed=5, size=(24, 60))
    assert main(["transfer", str(recipe), "--run", str(run), "--resume", *sets]) == 2
    assert "the data have changed since the run began" in capsys.readouterr().err
    sets += ["--set", "input.resize=crop", "--set", "input.padding=background"]
    assert main(["transfer", str(recipe), "--run", str(run), "--resume", *sets]) == 2
    assert "another recipe, or other --set values" in capsys.readouterr().err


def test_a_comparison_decides_once(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compared"
    command = ["compare", str(recipe), "--out", str(out), "--seeds", "2", "--arms", "pixels", "--budgets", "5"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("its training images decide input.height=32, input.width=64") == 1
    assert main([*command[:-1], "5,10"]) == 0
    told = capsys.readouterr().err
    assert "decide" not in told
    assert "pixels with 40 labels" in told
