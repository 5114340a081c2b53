"""A whole recipe on images that are drawn here: from a folder to a bundle that serves what torch gave."""

import hashlib
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
from PIL import Image
from support import SPECS, serving

from app.bundle import InputSpec, load
from app.bundle.drawings import GARMENTS
from app.settings import Settings
from training.__main__ import main
from training.data.folder import read_folder
from training.data.imageset import ImageSet
from training.data.material import gather
from training.learning.decoder import finetune_decoder
from training.learning.workshop import open_workshop
from training.networks.autoencoder import build
from training.networks.graph import to_onnx
from training.publish.onnx import Exported, export
from training.recipe import Input, Network, Recipe, Stage
from training.recipe import load as load_recipe
from training.recipe import read as read_recipe


def train(recipe: Path, folder: Path, changes: Sequence[str] = ()) -> int:
    sets = [part for change in changes for part in ("--set", change)]
    return main(["run", str(recipe), "--models", str(folder / "models"), "--run", str(folder / "run"), *sets])


Weights = dict[str, dict[str, torch.Tensor]]


def learnt(recipe: Path, run: Path, changes: Sequence[str] = (), *more: str) -> Weights:
    """The weights of a run that is not exported, which takes longer than all the rest."""
    sets = [part for change in changes for part in ("--set", change)]
    assert main(["transfer", str(recipe), "--run", str(run), *sets, *more]) == 0
    return weights_of(run)


def weights_of(run: Path) -> Weights:
    found: Weights = torch.load(run / "weights.pt", weights_only=True)
    return found


def assert_same(some: Weights, others: Weights) -> None:
    assert some.keys() == others.keys()
    for part, weights in some.items():
        for name, value in weights.items():
            assert torch.equal(value, others[part][name]), f"{part}.{name}"


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
    assert bundle.sets is not None
    assert len(bundle.sets) == len(gather(read_recipe(trained / "run")).calibration)
    assert bundle.map is not None
    places = bundle.map.at(outputs["embedding"])  # of all that was held out; the map shows them all, in its own order
    assert len(bundle.map.points) == len(places)
    away = np.linalg.norm(places[:, None] - bundle.map.points.astype(np.float32), axis=2)
    assert away.min(axis=1).max() < 0.01 * np.ptp(places)
    assert bundle.map.labels is not None
    nearest = bundle.map.labels[away.argmin(axis=1)]
    assert (
        np.mean([bundle.manifest.classifier.labels[n] == label for n, label in zip(nearest, labels, strict=True)]) > 0.9
    )


def test_the_run_is_written_down(trained: Path, images: Path) -> None:
    stages = [json.loads(line)["stage"] for line in (trained / "run/metrics.jsonl").read_text().splitlines()]
    assert stages == ["pretrain"] * 8 + ["head"] * 20 + ["decoder"] * 2 + ["test"]
    assert json.loads((trained / "run/recipe.json").read_text())["pretrain"]["batch"] == 128
    provenance = load(trained / "models/drawn/1").manifest.provenance
    assert set(provenance.data) == {"source/train", "target/train", "target/test"}
    assert provenance.versions["torch"] == torch.__version__
    card = (trained / "models/drawn/1/card.md").read_text()
    assert load(trained / "models/drawn/1").parts == ["card", "report", "map"]
    assert re.search(r"\| accuracy \| [01]\.\d{4} \| 120 \|", card)
    assert re.search(r"\| set_coverage \| [01]\.\d{4} \| 120 \|", card)
    for label in GARMENTS:
        assert re.search(rf"^\| {label} \| 30 \| \d+\.\d\d% \| ", card, re.MULTILINE), label
    assert "Prediction sets" in (trained / "models/drawn/1/report.html").read_text()
    published = "".join(path.read_bytes().decode("latin-1") for path in (trained / "models/drawn/1").iterdir())
    assert str(images) not in published, "a bundle names its data, not where it lay"
    assert "site-packages" not in published
    assert ".py" not in published


def test_a_run_is_never_overwritten(recipe: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe, trained) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_finished_bundle_is_measured_again_from_the_command_line(
    trained: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(trained / "models/drawn/1")
    assert main(["evaluate", bundle, "--data", str(images)]) == 0
    stated = {m.name: m.value for m in load(Path(bundle)).manifest.metrics}
    assert f"accuracy {stated['accuracy']:.4f} over 120 images" in capsys.readouterr().out


def test_pretrain_transfer_and_export_make_the_bundle_that_run_makes(
    trained: Path, recipe: Path, tmp_path: Path
) -> None:
    """Of the same seed: the same weights, the same graphs."""
    first, second, models = tmp_path / "first", tmp_path / "second", tmp_path / "models"
    assert main(["pretrain", str(recipe), "--run", str(first)]) == 0
    assert not (first / "weights.pt").exists()
    whole = weights_of(trained / "run")
    assert_same(whole, learnt(recipe, second, (), "--from", str(first)))
    assert_same(whole, learnt(recipe, first, (), "--resume"))
    assert main(["export", str(second), "--models", str(models)]) == 0
    bundles = [load(folder / "drawn/1").manifest for folder in (trained / "models", models)]
    assert bundles[0].metrics == bundles[1].metrics
    for file in ("encoder.onnx", "decoder.onnx", "head.onnx"):
        assert bundles[0].files[file] == bundles[1].files[file]
    written = (second / "report.html").read_text()
    (second / "report.html").unlink()
    assert main(["report", str(second)]) == 0
    assert (second / "report.html").read_text() == written


def test_what_was_pretrained_stands_still_while_it_is_read(recipe: Path, tmp_path: Path) -> None:
    """Normalisation statistics are learnt in pretraining; reading a target must not overwrite them."""
    changes = [*SMALL, "transfer.reads=features"]
    first = tmp_path / "first"
    assert main(["pretrain", str(recipe), "--run", str(first), *(p for c in changes for p in ("--set", c))]) == 0
    whole = learnt(recipe, tmp_path / "whole", changes)
    assert_same(whole, learnt(recipe, tmp_path / "second", changes, "--from", str(first)))
    assert_same(whole, learnt(recipe, first, changes, "--resume"))


def test_a_code_that_was_never_drawn_from_is_drawn_from_in_the_end(recipe: Path, tmp_path: Path) -> None:
    changes = ["network.kind=dense", "network.latent=8", "decoder.epochs=6", "decoder.rate=3e-3"]
    changes += ["objective.contrast=1", "objective.reconstruction=0", "pretrain.augment.crop=0.5"]
    learnt(recipe, tmp_path / "run", changes)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    output, drawn = ([line["validation_loss"] for line in lines if line["stage"] == s] for s in ("pretrain", "decoder"))
    assert output[-1] < output[0]
    assert drawn[-1] < 0.9 * drawn[0]


def test_contrast_needs_another_image_to_tell_from(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["objective.contrast=1", "pretrain.augment.crop=0.5", "split.validation=1"]
    sets = [part for change in changes for part in ("--set", change)]
    assert main(["pretrain", str(recipe), "--run", str(tmp_path / "run"), *sets]) == 2
    assert "1 validation image: contrast compares images, and needs two" in capsys.readouterr().err


def test_an_untrained_encoder_is_untrained(recipe: Path, tmp_path: Path) -> None:
    """Its normalisation has seen nothing."""
    encoder = learnt(recipe, tmp_path / "run", [*SMALL, "transfer.mode=random-frozen"])["encoder"]
    means = [value for name, value in encoder.items() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)


def test_data_that_changed_are_not_measured_as_if_they_had_not(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images / "train", tmp_path / "mine")
    sets = ["--set", f"source={tmp_path}/mine", "--set", f"target={tmp_path}/mine"]
    run = str(tmp_path / "run")
    assert main(["transfer", str(recipe), "--run", run, *sets, "--set", "pretrain.epochs=1"]) == 0
    shutil.copy(images / "test/bag/0.png", tmp_path / "mine/bag/new.png")
    assert main(["export", run, "--models", str(tmp_path / "models")]) == 2
    assert "the data have changed since the run began (source/train, target/train" in capsys.readouterr().err


def test_what_is_held_out_is_not_pretrained_on(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unlabelled source that holds the target's images too, and a run that pretrained on what is held out here."""
    (tmp_path / "all").mkdir()
    for part in ("train", "test"):
        for path in (images / part).rglob("*.png"):
            shutil.copy(path, tmp_path / f"all/{part}-{path.parent.name}-{path.name}")
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    source = ["--set", f"source={tmp_path}/all", "--set", "pretrain.epochs=1"]
    assert main(["pretrain", str(recipe), "--run", first, *source]) == 0
    assert "are held out of the target: pretraining leaves them out" in capsys.readouterr().err
    assert main(["transfer", str(recipe), "--run", second, "--from", first]) == 0
    assert capsys.readouterr().err.count("are held out of the target") == 1, "once is enough"
    alone = ["--set", f"source={tmp_path}/all", "--set", f"target={tmp_path}/all", "--set", "transfer.mode=decoder"]
    assert main(["pretrain", str(recipe), "--run", str(tmp_path / "third"), *alone, "--set", "pretrain.epochs=1"]) == 0
    assert main(["transfer", str(recipe), "--run", str(tmp_path / "fourth"), "--from", str(tmp_path / "third")]) == 2
    assert "of the images that are held out here" in capsys.readouterr().err


def test_an_image_that_lies_there_twice_does_not_part_pretraining_from_transfer(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images / "train", tmp_path / "mine")
    for copy in range(20):
        shutil.copy(images / "train/bag/0.png", tmp_path / f"mine/bag/copy-{copy}.png")
    sets = [f"source={tmp_path}/mine", f"target={tmp_path}/mine", "pretrain.epochs=1", "transfer.epochs=1"]
    changes = [part for change in sets for part in ("--set", change)]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert main(["pretrain", str(recipe), "--run", first, *changes]) == 0
    assert "accuracy on them is too high" in capsys.readouterr().err, "copies lie in both parts"
    assert main(["transfer", str(recipe), "--run", second, "--from", first, *changes]) == 0


def test_images_larger_than_memory_give_the_same_weights(
    trained: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_MEMORY_MB", "0.01")
    assert_same(weights_of(trained / "run"), learnt(recipe, tmp_path / "run"))
    assert (trained / "run/data.json").read_text() == (tmp_path / "run/data.json").read_text(), "fingerprints too"


def test_int8_is_kept_only_where_it_holds_its_accuracy(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*SMALL, "transfer.reads=features", "export.int8=true"]
    assert train(recipe, tmp_path / "kept", [*changes, "export.most_lost=0.9"]) == 0
    bundle = load(tmp_path / "kept/models/drawn/1")
    assert b"QuantizeLinear" in (tmp_path / "kept/models/drawn/1/encoder.onnx").read_bytes()
    assert max(bundle.manifest.golden.outputs.values()) > 1e-4
    costs = {metric.name: metric for metric in bundle.manifest.metrics}
    assert costs["int8_embedding_cosine"].value > 0.95
    assert costs["int8_auroc_lost"].value < 0.01
    assert all(costs[name].how.endswith("is allowed: kept") for name in ("int8_embedding_cosine", "int8_auroc_lost"))
    lost = costs["int8_accuracy_lost"]
    assert lost.how.endswith("is allowed: kept")
    assert lost.images == 48
    assert "int8: " in capsys.readouterr().err


def test_a_refused_int8_leaves_fp32(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that cannot be told apart in eight bits: one channel's are a thousand times the others'."""
    from training.publish import draft

    real = draft.quantised

    def coarse(exported: Exported, images: ImageSet) -> Exported:
        """Quantised, then spoilt: all codes come out alike."""
        made = real(exported, images)
        head = onnx.load_from_string(made.files["head.onnx"])
        for weight in head.graph.initializer:
            weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return replace(made, files={**made.files, "head.onnx": head.SerializeToString()})

    monkeypatch.setattr(draft, "quantised", coarse)
    assert train(recipe, tmp_path, [*SMALL, "transfer.reads=features", "transfer.epochs=10", "export.int8=true"]) == 0
    assert b"QuantizeLinear" not in (tmp_path / "models/drawn/1/encoder.onnx").read_bytes()
    assert "refused, fp32 is published" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [("least_cosine=0.9", "kept"), ("least_cosine=0.99999", "refused"), ("most_auroc_lost=0.5", "kept")],
)
def test_int8_without_labels_is_held_to_embeddings_and_detection(
    limit: str, verdict: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*NETWORK, "transfer.mode=decoder", "decoder.epochs=1", "export.int8=true", f"export.{limit}"]
    assert train(recipe, tmp_path, changes) == 0
    stated = {metric.name: metric for metric in load(tmp_path / "models/drawn/1").manifest.metrics}
    assert {"int8_embedding_cosine", "int8_auroc_lost"} <= set(stated)
    assert "int8_accuracy_lost" not in stated
    quantised = b"QuantizeLinear" in (tmp_path / "models/drawn/1/encoder.onnx").read_bytes()
    assert quantised == (verdict == "kept")
    assert f"int8: {verdict}" in capsys.readouterr().err


def test_evaluate_divides_a_folder_as_the_recipe_did(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder without a test part only what was held back is measured; of another folder everything."""
    sets = ["--set", f"source={images}/train", "--set", f"target={images}/train"]
    arguments = ["run", str(recipe), "--models", str(tmp_path / "models"), "--run", str(tmp_path / "run"), *sets]
    assert main([*arguments, *(part for change in DENSE for part in ("--set", change))]) == 0
    capsys.readouterr()
    bundle = str(tmp_path / "models/drawn/1")
    for data, message, count in (
        (images / "train", "split as in training", 96),
        (images / "test", "all of it is measured", 120),
    ):
        assert main(["evaluate", bundle, "--data", str(data)]) == 0
        output = capsys.readouterr()
        assert message in output.err
        assert f" over {count} images" in output.out
        assert "95 % by chance in both samples" in output.out


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
    assert error.rstrip().endswith(f"resume with the same command and --run {tmp_path / 'run'} --resume")
    assert "Traceback" not in error
    assert not (tmp_path / "models").exists()


NETWORK = ("network.kind=conv", "network.width=4", "network.latent=8", "pretrain.epochs=1")
SMALL = (*NETWORK, "transfer.epochs=2")
DENSE = ("network.kind=dense", "network.hidden=16", "network.latent=8", "pretrain.epochs=1")  # half the time to export


@pytest.mark.parametrize(
    ("mode", "reads"),
    [
        ("head", "features"),
        ("gradual", "features"),
        ("full", "embedding"),
        ("multitask", "features"),
        ("episodic", "embedding"),
        ("scratch", "features"),
        ("random-frozen", "embedding"),
        ("decoder", "features"),
    ],
)
def test_every_mode_learns_and_is_exported(mode: str, reads: str, recipe: Path, tmp_path: Path) -> None:
    changes = [*SMALL, f"transfer.mode={mode}", f"transfer.reads={reads}", "transfer.class_weights=true"]
    if mode == "decoder":  # which learns no labels
        changes = [*NETWORK, "transfer.mode=decoder"]
    weights = learnt(recipe, tmp_path / "run", changes)
    assert ("head" in weights) == (mode != "decoder")
    stages = {json.loads(line)["stage"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()}
    assert ("pretrain" in stages) == (mode not in ("scratch", "random-frozen"))
    if mode not in ("gradual", "decoder"):  # the others' graphs are like gradual's
        return
    assert main(["export", str(tmp_path / "run"), "--models", str(tmp_path / "models")]) == 0
    bundle = load(tmp_path / "models/drawn/1")
    assert ("classify" in bundle.operations) == (mode != "decoder")
    outputs = [tensor.name for tensor in bundle.manifest.graphs.encoder.outputs]
    assert outputs == (["embedding", "features"] if mode != "decoder" else ["embedding"])
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    assert len(bundle.anomaly(images)) == 5


def backbone(folder: Path, images: Path) -> list[str]:
    """A weights file as torchvision publishes them, its classifier too, and what makes a recipe of it small."""
    torch.manual_seed(1)
    state = build(Network(backbone="resnet18", weights=None), (64, 64, 3)).encoder.state_dict()
    fc = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({**state, **fc}, folder / "resnet18.pth")
    few = folder / "few"
    for kind in GARMENTS[:3]:
        (few / kind).mkdir(parents=True)
        for number in range(9):
            shutil.copy(images / "train" / kind / f"{number}.png", few / kind)
    return [
        *(f"source={few}", f"target={few}", "network.backbone=resnet18", f"network.weights={folder / 'resnet18.pth'}"),
        *("transfer.epochs=2", "false_alarm_rate=0.2"),
    ]


def test_weights_of_others_stay_as_they_are_and_are_served_at_the_recipes_size(images: Path, tmp_path: Path) -> None:
    stated = load_recipe("backbone", []).input
    assert (stated.height, stated.width, stated.channels) == (224, 224, 3)
    sizes = ["input.height=64", "input.width=64"]  # a tenth of the work
    assert train(Path("backbone"), tmp_path, [*backbone(tmp_path, images), *sizes]) == 0
    given = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    for name, value in weights_of(tmp_path / "run")["encoder"].items():
        assert torch.equal(value, given[name]), name
    with serving(Settings(models=tmp_path / "models")) as client:
        body = (images / "test/bag/0.png").read_bytes()
        [answer] = client.post("/v1/predict", content=body, headers={"content-type": "image/png"}).json()["results"]
        assert answer["label"] in GARMENTS[:3]
        assert len(answer["embedding"]) == 512
        assert "anomalous" in answer
        model = client.get("/v1/models/backbone").json()
        assert (model["manifest"]["input"]["height"], model["manifest"]["input"]["channels"]) == (64, 3)
        recipe = json.loads(model["manifest"]["provenance"]["recipe"])
        assert recipe["network"]["weights"] == "resnet18.pth", "its name, not where it lay"
        assert model["operations"] == ["classify", "encode", "anomaly", "predict", "explain", "sets", "similar"]
        begun = {
            "backbone": "resnet18",
            "file": "resnet18.pth",
            "sha256": hashlib.sha256((tmp_path / "resnet18.pth").read_bytes()).hexdigest(),
            "publisher": None,
            "licence": None,
        }
        assert model["weights"] == model["manifest"]["provenance"]["weights"] == begun
        assert (
            f"resnet18.pth, whose publisher is not known here; the licence is not known here; SHA-256 {begun['sha256']}"
            in (client.get("/v1/models/backbone/card").text)
        )
        options = {"content": body, "headers": {"content-type": "image/png"}}
        [plain] = client.post("/v1/classify", **options).json()["results"]
        [explained] = client.post("/v1/classify?explain=true", **options).json()["results"]
        assert explained.pop("explanation")
        assert explained == plain
    bundle = load(tmp_path / "models/backbone/1")
    (tmp_path / "resnet18.pth").unlink()  # what the run began with stands in its folder
    assert main(["export", str(tmp_path / "run"), "--models", str(tmp_path / "again")]) == 0
    again = load(tmp_path / "again/backbone/1")
    assert again.manifest.provenance.weights == bundle.manifest.provenance.weights is not None


def test_a_run_goes_on_with_the_weights_that_it_began_with_alone(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*backbone(tmp_path, images), "input.height=32", "input.width=32"]
    learnt(Path("backbone"), tmp_path / "run", changes)
    (tmp_path / "run/weights.pt").unlink()
    state = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    torch.save({**state, "fc.bias": torch.ones(1000)}, tmp_path / "resnet18.pth")
    sets = [part for change in changes for part in ("--set", change)]
    arguments = ["transfer", "backbone", "--run", str(tmp_path / "run"), "--resume", *sets]
    assert main(arguments) == 2
    assert "the run began with resnet18.pth of SHA-256" in capsys.readouterr().err
    (tmp_path / "run/published.json").write_text("{")
    assert main(arguments) == 2
    assert "published.json: damaged" in capsys.readouterr().err


def test_the_last_stage_of_a_backbone_thaws_under_a_head_with_a_hidden_layer(images: Path, tmp_path: Path) -> None:
    sizes = ["input.height=32", "input.width=32", "transfer.hidden=16", "transfer.augment.shift=2"]
    sizes += ["transfer.epochs=6", "transfer.rate=1e-4", "transfer.slower_below=1"]
    sizes += ["transfer.freeze_norms=false", "transfer.views=0"]  # random weights have no statistics worth keeping
    after = learnt(Path("backbone-thawed"), tmp_path / "run", [*backbone(tmp_path, images), *sizes])
    given = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    moved = {name.split(".")[0] for name, value in after["encoder"].items() if not torch.equal(value, given[name])}
    assert moved <= {"layer4"}, "normalisation's statistics included"
    stage = torch.load(tmp_path / "run/checkpoints/gradual.pt", weights_only=True)
    assert set(stage["modules"]) == {"encoder.4", "head"}
    assert after["head"]["0.weight"].shape == (16, 512)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "gradual"]
    assert losses[0] - losses[2] < 0.02 < losses[2] - losses[5], "half of the epochs are the head's alone"


def test_a_head_with_a_hidden_layer_is_exported(recipe: Path, tmp_path: Path) -> None:
    changes = [*SMALL, "transfer.hidden=16", "transfer.mode=head"]
    learnt(recipe, tmp_path / "run", changes)
    assert main(["export", str(tmp_path / "run"), "--models", str(tmp_path / "models")]) == 0
    bundle = load(tmp_path / "models/drawn/1")
    stated = {metric.name: metric.value for metric in bundle.manifest.metrics}
    assert stated["accuracy"] == pytest.approx(stated["accuracy_in_torch"], abs=0.001)
    assert "explain" not in bundle.operations, "a hidden layer mixes the places"


def test_a_frozen_encoder_stays_and_a_freed_one_moves(recipe: Path, tmp_path: Path) -> None:
    moved = {}
    for mode in ("head", "full"):
        after = learnt(recipe, tmp_path / mode, [*SMALL, f"transfer.mode={mode}"])["encoder"]
        checkpoint = torch.load(tmp_path / mode / "checkpoints/pretrain.pt", "cpu", weights_only=True)
        before = checkpoint["modules"]["encoder"]
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
    assert "the training part has classes that the test part lacks (bag)" in capsys.readouterr().err


def test_where_there_are_no_labels_none_are_learnt_and_it_is_said(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        (tmp_path / "plain" / part).mkdir(parents=True)
        for path in (images / part).rglob("*.png"):
            shutil.copy(path, tmp_path / "plain" / part / f"{path.parent.name}-{path.name}")
    changes = [*DENSE, f"target={tmp_path / 'plain'}"]
    assert train(recipe, tmp_path, changes) == 0
    assert "there is nothing to classify: transfer.mode=decoder is set" in capsys.readouterr().err
    assert load(tmp_path / "models/drawn/1").operations == [
        "encode",
        "reconstruct",
        "anomaly",
        "predict",
        "decode",
        "similar",
    ]


def test_colour_at_another_size_and_a_variational_code(recipe: Path, tmp_path: Path) -> None:
    changes = [*SMALL, "network.variational=true", "input.channels=3", "input.height=32", "input.width=40"]
    changes += ['anomaly.distances=["thumbnail.neighbours", "features.residual"]']
    assert train(recipe, tmp_path, changes) == 0
    bundle = load(tmp_path / "models/drawn/1")
    assert bundle.manifest.input.shape == (32, 40, 3)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 40, 3), dtype=np.uint8)
    assert {name for score in bundle.anomaly(images) for name in score.distances} == {
        "thumbnail.neighbours",
        "features.residual",
    }
    found = {metric.name: metric.value for metric in bundle.manifest.metrics}
    assert 0 < found["nll_bound"] <= found["negative_elbo"]
    assert "nats" in (tmp_path / "run/report.html").read_text()


def test_a_run_whose_variances_were_not_trained_publishes_no_variational_code(recipe: Path, tmp_path: Path) -> None:
    """An older Graft trained such runs; here the recipe of one is put into the folder of a run."""
    sets = ["network.kind=dense", "network.variational=true", "network.latent=4", "pretrain.epochs=1"]
    learnt(recipe, tmp_path / "run", [*sets, "transfer.epochs=1", "decoder.epochs=1"])
    stated = json.loads((tmp_path / "run/recipe.json").read_text())
    for mode, trained in (("head", True), ("full", False)):
        stated["transfer"]["mode"] = mode
        (tmp_path / "run/recipe.json").write_text(json.dumps(stated))
        assert main(["export", str(tmp_path / "run"), "--models", str(tmp_path / mode)]) == 0
        bundle = load(tmp_path / mode / "drawn/1")
        assert bundle.manifest.variational == trained
        assert ("generate" in bundle.operations) == trained
        assert any(metric.name == "negative_elbo" for metric in bundle.manifest.metrics) == trained


def test_pretrained_variances_are_not_taken_into_a_mode_that_does_not_keep_them(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["network.kind=dense", "network.variational=true", "network.latent=4", "pretrain.epochs=1"]
    given = [part for change in sets for part in ("--set", change)]
    assert main(["pretrain", str(recipe), "--run", str(tmp_path / "first"), *given]) == 0
    command = ["transfer", str(recipe), "--run", str(tmp_path / "second"), "--from", str(tmp_path / "first")]
    assert main([*command, "--set", "transfer.mode=full"]) == 2
    assert "transfer.mode=full would publish variances" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()


def test_a_variational_decoder_is_fine_tuned_on_draws_of_the_code(recipe: Path, tmp_path: Path) -> None:
    """Where draws lie all over the place, they say nothing: garments are all drawn as their mean."""
    chosen = load_recipe(str(recipe), ["network.kind=dense", "network.variational=true", "network.latent=4"])
    drawn = {}
    for spread in (-20.0, 20.0):  # of the draws, as the log variance has it
        workshop = open_workshop(chosen, (28, 28, 1), tmp_path / str(spread), untrained=True)
        data = gather(chosen).train
        bias = workshop.net.encoder.log_variance.bias
        bias.data.fill_(spread)
        finetune_decoder(workshop, data, data, Stage(epochs=6, rate=5e-3))
        with torch.no_grad():
            drawn[spread] = workshop.net.decoder(workshop.net.encode(workshop.unit(data.images[:64])).code).sigmoid()
    assert drawn[20.0].std(0).mean() < drawn[-20.0].std(0).mean() / 4


KILLED = [*SMALL, "pretrain.epochs=4", "transfer.epochs=4", "transfer.mode=full", "objective.noise=0.1"]
KILLED += ["objective.contrast=0.5", "pretrain.augment.crop=0.5"]


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return learnt(recipe, tmp_path_factory.mktemp("undisturbed") / "run", KILLED)


@pytest.mark.parametrize("stage", ["pretrain", "full", "decoder"])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(
    stage: str, recipe: Path, undisturbed: Weights, tmp_path: Path
) -> None:
    arguments = ["transfer", str(recipe), "--run", str(tmp_path / "run")]
    arguments += [part for change in KILLED for part in ("--set", change)]
    with subprocess.Popen([sys.executable, "-m", "training", *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{stage} {1 if stage == 'decoder' else 2}/"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run/weights.pt").exists()
    assert main(arguments) == 2, "a run is not begun again by mistake"
    assert main([*arguments, "--resume"]) == 0
    assert_same(undisturbed, weights_of(tmp_path / "run"))


def test_what_cannot_be_resumed_says_why(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", str(recipe), "--resume"]
    for arguments, message in (
        (run, "--resume needs --run"),
        ([*run, "--run", str(tmp_path / "none")], "not a run: recipe.json is missing"),
        ([*run, "--run", str(trained / "run"), "--set", "seed=9"], "has another recipe"),
        ([*run, "--run", str(trained / "run")], "the run is finished: it published"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"[1, 2]\n", b"\xff\xfe\x00"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.json", "damaged, so changed data would go unnoticed"),
        ("bundle.txt", "the run has published nothing yet|bundle.txt: damaged: publish the run again"),
        ("metrics.jsonl", ""),
    ],
)
def test_a_damaged_file_of_a_run_is_named_or_passed_over(
    name: str, message: str, damage: bytes, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    (run / name).write_bytes(damage)
    assert main(["report", str(run)]) == (2 if message else 0)
    assert re.search(message, capsys.readouterr().err)


def test_an_exported_graph_keeps_nothing_of_the_machine_it_was_made_on() -> None:
    spec = Input().spec()
    exported = export(build(Network(kind="conv-seed"), spec.shape), torch.nn.Linear(128, 3), spec)
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
    from training.publish.onnx import _require_parity

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
    with pytest.raises(TrainingError, match=r"head\.onnx: logits of onnxruntime differs from torch's by"):
        _require_parity(Drifting(), model, graph)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"]),
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=3),
    shape=SPECS,
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
    served = [bundle.preprocess(file, max_pixels=10**6) for file in files]
    assert np.array_equal(served, trained.images)


def test_a_run_for_inspection_learns_from_the_sound_images_alone(inspected: Path) -> None:
    bundle = load(inspected / "models/surfaces/1")
    recipe = Recipe.stored(bundle.manifest.provenance.recipe)
    assert (recipe.transfer.mode, recipe.split.sound) == ("decoder", "good")
    assert bundle.manifest.classifier is None
    metrics = {metric.name: metric for metric in bundle.manifest.metrics}
    assert metrics["false_alarm_rate"].images == 10
    assert metrics["image_auroc"].images == 30
    assert metrics["image_auroc"].value > 0.9, "white on grey"
    assert metrics["pixel_auroc"].value > 0.9
    assert {"average_precision", "best_f1", "recall_at_threshold", "aupro_30", "aupro_5"} <= metrics.keys()
    assert "dot" in metrics["aupro_5"].how
    train = read_folder(inspected / "set/train", bundle.manifest.input)
    assert bundle.manifest.provenance.data["target/train"] == train.fingerprint()


def test_a_run_for_inspection_is_resumed_by_the_same_command(inspected: Path, tmp_path: Path) -> None:
    recipe, run = str(inspected / "surfaces.toml"), str(tmp_path / "run")
    assert main(["pretrain", recipe, "--run", run]) == 0
    assert main(["transfer", recipe, "--run", run, "--resume"]) == 0
    assert main(["transfer", recipe, "--run", run, "--resume", "--set", "transfer.mode=head"]) == 0, "settled alike"
    assert main(["transfer", recipe, "--run", run, "--resume", "--set", "seed=7"]) == 2
    assert main(["report", str(inspected / "run")]) == 0
