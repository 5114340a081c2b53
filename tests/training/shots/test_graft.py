"""From a few images to a bundle that serves, and what people get wrong on the way."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, draw_folder, environment, save_tiny, serving, spec

from app.bundle import Bundle, load
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.settings import Settings
from training.__main__ import main
from training.measure.intervals import at_least

SHIPPED = ROOT / "models/fashion-mnist/1"
LABELS = tuple(sorted(GARMENTS))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shots, five of each class, and a base that reads 28×28 pixels by five random numbers."""
    draw_folder(tmp_path / "My shots", 5, seed=0)
    save_tiny(tmp_path / "models", "base", shape=spec(28, 28))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grafted(*arguments: str, name: str = "my-shots", version: int = 1) -> Bundle:
    assert main(["graft", "My shots", *arguments]) == 0
    return load(Path("models") / name / str(version))


def test_where_neither_torch_nor_the_rest_of_training_is_installed_it_works(here: Path) -> None:
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'onnxscript', 'httpx', 'rich'));"
    code = f"{blocked} from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "graft", "My shots", "--base", str(SHIPPED)]
    done = subprocess.run(command, cwd=here, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "models/my-shots/1"
    assert "images were classified correctly" in done.stderr
    bundle = load(here / "models/my-shots/1")
    assert bundle.manifest.classifier is not None
    assert bundle.manifest.classifier.labels == LABELS


def test_without_onnx_the_extra_is_named(here: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "graft", "My shots"]
    done = subprocess.run(command, cwd=here, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'graft[shots]', or make install-shots" in done.stderr


@pytest.mark.parametrize("distance", ["mahalanobis", "cosine"])
def test_what_was_not_seen_is_told_over_http(here: Path, distance: str) -> None:
    grafted("--base", str(SHIPPED), "--distance", distance)
    with serving(Settings(models=here / "models", default_model="my-shots")) as client:
        for kind in GARMENTS:
            image = png(garment(kind, side=31))
            [answer] = client.post("/v1/predict", content=image, headers={"content-type": "image/png"}).json()[
                "results"
            ]
            assert answer["label"] == kind
            assert {"embedding", "image"} <= answer.keys()
            assert "anomalous" not in answer
        model = client.get("/v1/models/my-shots").json()
        assert model["metrics"][0]["name"] == "left_out_accuracy"
        assert "5 |" in client.get("/v1/models/my-shots/card").text
        assert client.get("/v1/models/my-shots/map").json()["points"]


def test_it_says_what_it_is_and_what_it_does_not_know(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = grafted("--base", str(SHIPPED))
    base, manifest = load(SHIPPED), bundle.manifest
    assert manifest.files["encoder.onnx"] == base.manifest.files["encoder.onnx"]
    assert manifest.graphs.head is not None
    assert manifest.graphs.head.input.name == "features", "as the base's own head has it"
    recipe = json.loads(manifest.provenance.recipe)["graft"]
    assert recipe == {"base": "fashion-mnist@1", "digest": base.digest, "reads": "features", "distance": "mahalanobis"}
    assert (manifest.provenance.source, manifest.provenance.target) == ("fashion-mnist@1", "My shots")
    [metric] = manifest.metrics
    low = at_least(round(metric.value * 20), 20)
    assert metric.images == 20
    assert f"on new images at least {low:.4f} (95 % confidence)" in metric.how
    assert manifest.anomaly is None
    output = capsys.readouterr().err
    card = bundle.documents["card.md"].decode()
    for sentence in (
        "20 images are too few to calibrate one",
        f"{metric.value:.4f}",
        "No other image was used",
        "| bag | 5 |",
    ):
        assert sentence in card
    assert "20 images are too few" in output


def test_enough_images_make_an_anomaly_score_of_their_own(here: Path) -> None:
    shutil.rmtree("My shots")
    draw_folder(here / "My shots", 40, seed=3)
    bundle = grafted("--base", "models/base/1")
    anomaly = bundle.manifest.anomaly
    assert anomaly is not None
    assert anomaly.calibrated_on == 80
    assert anomaly.false_alarm_rate == 0.05
    assert bundle.drift is None
    files = [path.read_bytes() for path in (draw_folder(here / "more", 40, seed=4)).rglob("*.png")]
    fresh = np.stack([bundle.preprocess(data) for data in files])
    assert np.mean([score.anomalous for score in bundle.anomaly(fresh)]) < 0.15
    [white] = bundle.anomaly(np.full((1, 28, 28, 1), 255, np.uint8))
    assert white.anomalous


def test_an_anomaly_score_can_come_later(here: Path) -> None:
    grafted("--base", "models/base/1")
    draw_folder(here / "normals", 30, seed=3)
    assert main(["calibrate", "models/my-shots/1", "normals", "--false-alarm-rate", "0.05"]) == 0
    after = load(here / "models/my-shots/2")
    assert after.manifest.anomaly is not None
    assert "No anomaly score" not in after.documents["card.md"].decode()
    assert after.map is not None
    again = grafted("--base", "models/base/1", version=3)
    assert again.manifest.anomaly is None, "what was made from shots may be made anew"


def test_of_a_folder_of_bundles_the_nearest_is_taken_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "models", here / "models", dirs_exist_ok=True)
    bundle = grafted()
    output = capsys.readouterr().err
    assert "passed over: base@1 has no embeddings" in output
    assert "base: fashion-mnist" in output
    assert "fashion-mnist-seed@1" in output
    assert bundle.manifest.provenance.source in ("fashion-mnist@1", "fashion-mnist-seed@1")
    again = grafted(version=2)
    assert again.manifest.provenance.source == bundle.manifest.provenance.source, "version 1 is no base for itself"


def test_a_broken_bundle_among_them_is_passed_over_and_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "models", here / "models", dirs_exist_ok=True)
    (here / "models/fashion-mnist-seed/1/head.onnx").write_bytes(b"")
    grafted()
    assert "passed over: fashion-mnist-seed/1/head.onnx" in capsys.readouterr().err


def test_evaluate_measures_it_on_other_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grafted("--base", str(SHIPPED))
    draw_folder(here / "others", 5, seed=9)
    assert main(["evaluate", "models/my-shots/1", "--data", "others"]) == 0
    assert "accuracy 1.0000 over 20 images" in capsys.readouterr().out


# --- what people get wrong ---------------------------------------------------------------------------------------


def one_class(here: Path) -> list[str]:
    for kind in GARMENTS[1:]:
        shutil.rmtree(here / "My shots" / kind)
    return []


def no_folders(here: Path) -> list[str]:
    for path in list((here / "My shots").rglob("*.png")):
        path.rename(here / "My shots" / f"{path.parent.name}-{path.name}")
    for kind in GARMENTS:
        (here / "My shots" / kind).rmdir()
    return []


def empty_class(here: Path) -> list[str]:
    (here / "My shots/hat").mkdir()
    return []


def single_image(here: Path) -> list[str]:
    (here / "My shots/hat").mkdir()
    shutil.copy(here / "My shots/bag/0.png", here / "My shots/hat/0.png")
    return []


def broken_file(here: Path) -> list[str]:
    (here / "My shots/bag/3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return []


def name_taken(here: Path) -> list[str]:
    return ["--name", "base"]


def models_is_a_file(here: Path) -> list[str]:
    (here / "mine").write_text("mine")
    return ["--base", "models/base/1", "--models", "mine"]


def nothing_near(here: Path) -> list[str]:
    save_tiny(here / "models", "other")
    return []


def nameless(here: Path) -> list[str]:
    (here / "My shots").rename(here / "写真")
    return ["写真"]


BAD: list[tuple[Callable[[Path], list[str]], str]] = [
    (one_class, "My shots: one class, t-shirt; put the images of each class"),
    (no_folders, "My shots: images, but no folders of them; put the images of each class"),
    (empty_class, "My shots/hat: no images in it; put some there, or remove the folder"),
    (single_image, "My shots/hat: a single image; 2 are needed"),
    (broken_file, "My shots: 1 of 20 images cannot be read: bag/3.png (broken PNG"),
    (name_taken, "models/base/1: this model was not made from shots"),
    (models_is_a_file, "the bundle cannot be written"),
    (nothing_near, "none of its bundles has embeddings to compare with; name one"),
    (nameless, "写真: no model can have this name; give one with --name"),
    (lambda _: ["--name", "Mine!"], "'Mine!' cannot name a bundle"),
    (lambda _: ["--reads", "features"], "--reads features: base@1 gives no features; use --reads embedding"),
    (lambda _: ["--base", "nowhere"], "nowhere: no such path; give a bundle"),
    (lambda _: ["nowhere"], "nowhere: no such folder; give one with a folder of images in it for each class"),
]


@pytest.mark.parametrize(("prepare", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_it_is_named_in_one_sentence_and_nothing_is_published(
    prepare: Callable[[Path], list[str]], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = prepare(here)
    if not arguments or arguments[0].startswith("-"):
        arguments = ["My shots", *arguments]
    assert main(["graft", *arguments]) == 2
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    assert last.startswith("graft-train: ")
    assert message in last
    assert output.out == ""
    assert not (here / "models/my-shots").exists()
