"""Images that may have several labels, drawn by code: a list → a run of each mode → a bundle → its answers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image, ImageDraw
from support import serving

from app.bundle import Bundle, load
from app.bundle.encode import png
from app.settings import Settings
from training.__main__ import main
from training.auto.verdict import NO_BETTER

LABELS = ("circle", "square", "stripe")
OFTEN = (0.5, 0.4, 0.15)
SIDE = 32


def drawn(labels: set[str], rng: np.random.Generator) -> Image.Image:
    """Shapes of their own colour, each anywhere, on a noisy ground: none hides all of another."""
    image = Image.fromarray(rng.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    if "stripe" in labels:
        row = int(rng.integers(2, SIDE - 4))
        draw.rectangle((0, row, SIDE, row + 2), fill=(105, 105, 135))
    for label, colour, paint in (("square", (95, 140, 95), draw.rectangle), ("circle", (140, 95, 95), draw.ellipse)):
        if label in labels:
            x, y = (int(at) for at in rng.integers(1, SIDE - 12, 2))
            paint((x, y, x + 10, y + 10), fill=colour)
    return image


def draw_list(folder: Path, count: int, seed: int) -> Path:
    """A CSV of so many images; a fifth of them is the test part."""
    rng, lines = np.random.default_rng(seed), ["path,label,split"]
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        labels = [label for label, often in zip(LABELS, OFTEN, strict=True) if rng.random() < often]
        drawn(set(labels), rng).save(folder / f"images/{number:04}.png")
        lines.append(f"images/{number:04}.png,{'|'.join(labels)},{'test' if number % 5 == 0 else 'train'}")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


def recipe(file: Path, mode: str, changes: str = "") -> str:
    path = file.parent / f"{mode}.toml"
    path.write_text(f"""
name = "shapes"
title = "shapes drawn by code"
source = "{file}"
target = "{file}"
false_alarm_rate = 0.05
[input]
height = {SIDE}
width = {SIDE}
channels = 3
[network]
kind = "conv"
width = 8
latent = 16
[pretrain]
epochs = 2
[decoder]
epochs = 1
[transfer]
mode = "{mode}"
reads = "features"
{changes}
""")
    return str(path)


@dataclass(frozen=True)
class Trained:
    file: Path
    run: Path
    models: Path
    bundle: Bundle


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("shapes")
    file = draw_list(folder / "data", 600, seed=0)
    command = ["run", recipe(file, "full", "epochs = 24\nrate = 2e-2"), "--models", str(folder / "models")]
    assert main([*command, "--run", str(folder / "run")]) == 0
    return Trained(file, folder / "run", folder / "models", load(folder / "models/shapes/1"))


@pytest.fixture(scope="module")
def client(trained: Trained) -> Iterator[httpx.Client]:
    with serving(Settings(models=trained.models)) as client:
        yield client


def metrics(bundle: Bundle) -> dict[str, float]:
    return {metric.name: metric.value for metric in bundle.manifest.metrics}


def of_test_part(trained: Trained) -> list[tuple[bytes, set[str]]]:
    """The files of the test part, with their labels."""
    rows = [line.split(",") for line in trained.file.read_text().splitlines()[1:]]
    return [
        ((trained.file.parent / path).read_bytes(), {label for label in labels.split("|") if label})
        for path, labels, split in rows
        if split == "test"
    ]


def test_a_run_leads_to_a_bundle_of_independent_labels(trained: Trained) -> None:
    manifest = trained.bundle.manifest
    assert manifest.classifier is not None
    assert manifest.classifier.labels == LABELS
    assert manifest.classifier.thresholds is not None
    assert all(0.05 <= threshold <= 0.95 for threshold in manifest.classifier.thresholds)
    assert len(set(manifest.classifier.thresholds)) == 3, "each is chosen for its label"
    found = metrics(trained.bundle)
    assert found["mean_average_precision"] > 0.9
    assert found["micro_f1"] > 0.8
    assert found["calibration_error"] < 0.1
    assert abs(found["label_accuracy_in_torch"] - found["micro_f1"]) < 0.2
    assert not {"accuracy", "balanced_accuracy", "cluster_nmi"} & found.keys()


def test_its_metrics_are_those_of_its_answers(trained: Trained, client: httpx.Client) -> None:
    """Over a real socket, by the formulas."""
    files = of_test_part(trained)
    results: list[dict[str, Any]] = []
    for start in range(0, len(files), 40):
        parts = [("image", file) for file, _ in files[start : start + 40]]
        results += client.post("/v1/classify", files=parts).raise_for_status().json()["results"]
    given = [{each["label"] for each in result["labels"]} for result in results]
    right = [len(found & truth) for found, (_, truth) in zip(given, files, strict=True)]
    called, truly = sum(map(len, given)), sum(len(truth) for _, truth in files)
    found = metrics(trained.bundle)
    assert found["micro_f1"] == pytest.approx(2 * sum(right) / (called + truly))
    exact = np.mean([one == truth for one, (_, truth) in zip(given, files, strict=True)])
    assert found["all_labels_right"] == pytest.approx(exact)
    areas = []
    for label in LABELS:
        order = np.argsort([-result["probabilities"][label] for result in results])
        hits = np.array([label in files[index][1] for index in order])
        areas.append(np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]))
    assert found["mean_average_precision"] == pytest.approx(np.mean(areas), abs=1e-3)  # ties, of equal images


def test_an_image_of_none_of_the_labels_is_given_none(client: httpx.Client) -> None:
    rng = np.random.default_rng(9)
    pictures = [drawn(labels, rng) for labels in (set[str](), {"circle", "square"}) for _ in range(20)]
    files = []
    for number, picture in enumerate(pictures):
        files.append(("image", (f"{number}.png", png(picture), "image/png")))
    results = client.post("/v1/predict", files=files).raise_for_status().json()["results"]
    given = [{each["label"] for each in result["labels"]} for result in results]
    assert sum(not labels for labels in given[:20]) >= 16
    assert sum({"circle", "square"} <= labels for labels in given[20:]) >= 14


def test_each_label_that_an_image_has_is_explained(trained: Trained, client: httpx.Client) -> None:
    file = next(file for file, labels in of_test_part(trained) if len(labels) > 1)
    answer = client.post("/v1/classify?explain=true", files={"image": file}).raise_for_status().json()
    labels = answer["results"][0]["labels"]
    assert len(labels) > 1
    assert len({each["explanation"] for each in labels}) == len(labels), "each label has a map of its own"


def test_an_unmodified_triton_client_reads_the_same_probabilities(trained: Trained, client: httpx.Client) -> None:
    files = [file for file, _ in of_test_part(trained)[:5]]
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, np.object_))
    with triton.InferenceServerClient(client.base_url.netloc.decode()) as other:
        found = other.infer("shapes", [tensor]).as_numpy("probabilities")
    answer = client.post("/v1/classify", files=[("image", file) for file in files]).raise_for_status().json()
    expected = [[result["probabilities"][label] for label in LABELS] for result in answer["results"]]
    assert found == pytest.approx(np.array(expected), abs=1e-5)


def test_card_and_report_have_the_labels_in_the_place_of_confusions(trained: Trained) -> None:
    card, page = (trained.bundle.documents[name].decode() for name in ("card.md", "report.html"))
    assert "An image may have several, or none" in card
    assert "validation and 96 calibration images" in card
    assert trained.bundle.manifest.classifier is not None
    for label, threshold in zip(LABELS, trained.bundle.manifest.classifier.thresholds or (), strict=True):
        assert f"| {label} | {threshold:.4f} |" in card
        assert f"{threshold:.4f}" in page
    assert "Confusion" not in page
    assert "average precision" in page
    assert "are given exactly their labels" in page
    assert main(["report", str(trained.run)]) == 0


def evaluate(trained: Trained, data: Path) -> int:
    return main(["evaluate", str(trained.models / "shapes/1"), "--data", str(data)])


def test_evaluate_measures_the_test_part_label_by_label(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(trained, trained.file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"mean_average_precision {metrics(trained.bundle)['mean_average_precision']:.4f} over 120 images" in lines
    heads = next(line for line in lines if line.startswith("label "))
    assert heads.split() == ["label", "threshold", "precision", "recall", "F1", "average", "precision", "images"]
    counts = {label: sum(label in labels for _, labels in of_test_part(trained)) for label in LABELS}
    table = {line.split()[0]: line.split()[-1] for line in lines if line.split()[0] in LABELS}
    assert table == {label: str(count) for label, count in counts.items()}


def test_a_list_may_name_fewer_labels_than_the_bundle_knows(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = trained.file.read_text().splitlines()
    kept = [line for line in lines if "stripe" not in line and (line.endswith("test") or line == lines[0])]
    other = trained.file.with_name("fewer.csv")
    other.write_text("\n".join(line.replace(",test", ",") for line in kept))
    assert evaluate(trained, other) == 0
    out = capsys.readouterr().out
    [stripe] = [line.split() for line in out.splitlines() if line.startswith("stripe")]
    assert stripe[-1] == "0"
    assert len(stripe) == 6, "no average precision"


def test_images_of_one_label_are_not_evaluated_as_if_they_had_several(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    other = trained.file.with_name("single.csv")
    rows = [line.split(",") for line in trained.file.read_text().splitlines()[1:]]
    other.write_text("path,label\n" + "\n".join(f"{path},{label}" for path, label, _ in rows if label in LABELS))
    assert evaluate(trained, other) == 2
    assert "the images have one label each, and the bundle's labels are independent" in capsys.readouterr().err


def test_drift_and_recalibration_know_several_labels(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.models, tmp_path / "models")
    assert main(["calibrate", str(tmp_path / "models/shapes/1"), str(trained.file.parent / "images")]) == 0
    after = load(tmp_path / "models/shapes/2")
    assert after.manifest.classifier == trained.bundle.manifest.classifier
    assert after.drift is not None
    assert after.drift.confidences is not None
    assert 0.5 <= after.drift.confidences.min() <= after.drift.confidences.max() <= 1
    assert "An image may have several, or none" in after.documents["card.md"].decode()


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("linear", ""),
        ("head", "epochs = 20\nrate = 3e-2"),
        ("gradual", 'begin = "linear"\nepochs = 4\nmixup = 0.2'),
        ("multitask", "epochs = 4\nsmoothing = 0.1"),
    ],
)
def test_every_mode_that_can_learns_several_labels(trained: Trained, tmp_path: Path, mode: str, changes: str) -> None:
    command = ["run", recipe(trained.file, mode, changes), "--models", str(tmp_path / "models")]
    assert main([*command, "--run", str(tmp_path / "run")]) == 0
    found = metrics(load(tmp_path / "models/shapes/1"))
    assert found["mean_average_precision"] > 0.5, "by chance it is the mean share of images, 0.35"


def test_in_integers_average_precision_is_kept(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", recipe(trained.file, "linear"), "--set", "export.int8=true", "--set", "export.most_lost=0.9"]
    assert main([*command, "--models", str(tmp_path / "models"), "--run", str(tmp_path / "run")]) == 0
    assert "of labels of validation images, fp32" in capsys.readouterr().err
    assert "int8_average_precision_lost" in metrics(load(tmp_path / "models/shapes/1"))


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("run", ["transfer.mode=episodic"], "transfer.mode=episodic learns one label of each: set"),
        ("run", ["transfer.mode=linear", "transfer.class_weights=true"], "transfer.class_weights weighs classes"),
        ("run", ["split.sound=circle"], "split.sound=circle is for images of one label each"),
        ("compare", [], "a comparison is by accuracy, of one label each"),
    ],
)
def test_what_is_of_one_label_is_refused(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    changes: list[str],
    message: str,
) -> None:
    own = ["--out" if command == "compare" else "--run", str(tmp_path / "run")]
    arguments = [command, recipe(trained.file, "head"), *own]
    for change in changes:
        arguments += ["--set", change]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def without_parts(folder: Path, count: int) -> list[tuple[str, str]]:
    """(path, labels) of images that are drawn there; no part is held out."""
    lines = draw_list(folder, count, seed=1).read_text().splitlines()[1:]
    return [(path, labels) for path, labels, _ in (line.split(",") for line in lines)]


def write_list(file: Path, rows: list[tuple[str, str]]) -> Path:
    file.write_text("\n".join(["path,label", *(f"{path},{labels}" for path, labels in rows)]))
    return file


def test_across_folds_no_image_is_held_out_and_every_number_says_where_it_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_list(tmp_path / "data/all.csv", without_parts(tmp_path / "data", 90))
    command = ["run", recipe(file, "linear"), "--set", "split.folds=3", "--models", str(tmp_path / "models")]
    assert main([*command, "--run", str(tmp_path / "run")]) == 0
    bundle = load(tmp_path / "models/shapes/1")
    found = {metric.name: metric for metric in bundle.manifest.metrics}
    assert {"mean_average_precision_across_folds", "micro_f1_across_folds", "macro_f1"} <= found.keys()
    assert not {"micro_f1", "mean_average_precision", "all_labels_right", "accuracy_across_folds"} & found.keys()
    assert found["micro_f1_across_folds"].images == 90
    assert "each by what learnt from other folds" in bundle.documents["card.md"].decode()
    assert bundle.manifest.classifier is not None
    assert bundle.manifest.classifier.thresholds not in (None, (0.5, 0.5, 0.5))
    assert "fold 3 of 3" in capsys.readouterr().err


def test_the_one_command_says_what_several_labels_are_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_list(tmp_path / "data/all.csv", without_parts(tmp_path / "data", 48))
    own = ["--models", str(tmp_path / "models"), "--run", str(tmp_path / "run"), "--minutes", "60"]
    assert main(["auto", str(file), *own]) == 0
    out, err = capsys.readouterr()
    assert "48 images that may have several labels, of 3 (" in err
    assert NO_BETTER not in out
    for sentence in ("Of 100 labels that it gives, about", "Mean average precision is", "Found worst: ", "Chosen: "):
        assert sentence in out
    assert load(tmp_path / "models/all/1").manifest.classifier is not None


def test_labels_of_too_few_images_and_inspection_are_refused_by_the_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = without_parts(tmp_path / "data", 20)
    rows[0] = (rows[0][0], "circle|oval")
    file = write_list(tmp_path / "data/all.csv", rows)
    assert main(["auto", str(file), "--for", "inspect"]) == 2
    assert "fewer than 4 images of oval (1)" in capsys.readouterr().err
    file = write_list(tmp_path / "data/all.csv", [(path, "circle|square") for path, _ in rows])
    assert main(["auto", str(file), "--for", "inspect"]) == 2
    assert "inspection learns from sound images: leave out --for" in capsys.readouterr().err


def test_a_label_without_an_image_to_train_on_is_named(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = trained.file.read_text().splitlines()
    lines[1] = f"{lines[1].split(',')[0]},circle|oval,test"
    other = trained.file.with_name("oval.csv")
    other.write_text("\n".join(lines))
    assert main(["run", recipe(other, "linear"), "--run", str(tmp_path / "run")]) == 2
    assert "labels that no image to train on has, once parts are held out: oval (0 in all)" in capsys.readouterr().err


def test_data_says_what_the_list_was_taken_for(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(trained.file)]) == 0
    out = capsys.readouterr().out
    assert "taken for: images that may have several labels, of 3; the training images have 1." in out
    for label in LABELS:
        [row] = [line.split() for line in out.splitlines() if line.startswith(label)]
        assert int(row[2]) == sum(label in labels for _, labels in of_test_part(trained))


def test_a_run_can_be_resumed_and_exported_again(trained: Trained, tmp_path: Path) -> None:
    assert main(["export", str(trained.run), "--models", str(tmp_path)]) == 0
    again = load(tmp_path / "shapes/1").manifest
    assert again.classifier == trained.bundle.manifest.classifier
    assert json.loads(again.to_json())["classifier"]["thresholds"] is not None
