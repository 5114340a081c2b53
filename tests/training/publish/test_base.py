"""A published network as a bundle that encodes: published, served, grafted onto, calibrated."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, assert_problem, draw_folder, environment, serving

from app.__main__ import main as service
from app.bundle import Bundle, load, preprocess
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.settings import Settings
from training.__main__ import main
from training.networks import weights
from training.networks.autoencoder import build
from training.recipe import Network

LITE0 = weights.PUBLISHED["efficientnet-lite0"]
PNG = {"content-type": "image/png"}
BAG = png(garment("bag", side=40))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        weights.path_of(Network(backbone="efficientnet-lite0"))
    except weights.TrainingError as error:
        pytest.skip(f"{error}")
    folder = tmp_path_factory.mktemp("bases")
    assert main(["base", "efficientnet-lite0", "--side", "64", "--models", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    """Loaded: its golden pairs hold."""
    return load(models / "efficientnet-lite0/1")


def test_it_says_whose_it_is_and_that_it_encodes(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert list(bundle.operations) == ["encode", "predict"]
    assert bundle.parts == ["card"]
    assert manifest.input.model_dump() | {"height": 64, "width": 64, "channels": 3, "resize": "pad"} == (
        manifest.input.model_dump()
    )
    begun = manifest.provenance.weights
    assert begun is not None
    assert begun.model_dump() == {
        "backbone": "efficientnet-lite0",
        "file": LITE0.file,
        "sha256": LITE0.sha256,
        "publisher": LITE0.publisher,
        "licence": "Apache-2.0",
    }
    card = bundle.documents["card.md"].decode()
    for said in (LITE0.file, LITE0.sha256, LITE0.publisher, "licence Apache-2.0", "can do nothing else"):
        assert said in card, said
    assert set(manifest.golden.outputs) == {"embedding", "features"}
    assert list(manifest.feature_maps) == [(size, 1, 1) for size in (24, 40, 112, 320, 1280)]


def test_its_embeddings_are_those_of_the_module(bundle: Bundle) -> None:
    net = build(Network(backbone="efficientnet-lite0"), bundle.manifest.input.shape)
    net.encoder.eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.no_grad():
        expected = net.read(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, "embedding").numpy()
    assert np.abs(bundle.encode(images)["embedding"] - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_it_lacks_is_409_and_the_rest_is_answered(models: Path) -> None:
    with serving(Settings(models=models)) as client:
        for operation, lacks in (("classify", "head"), ("anomaly", "anomaly calibration"), ("reconstruct", "decoder")):
            answer = client.post(f"/v1/{operation}", content=BAG, headers=PNG)
            assert_problem(answer, 409, "operation-unavailable", f"has no {lacks}, so it cannot {operation}")
        [found] = client.post("/v1/predict", content=BAG, headers=PNG).json()["results"]
        assert set(found) == {"embedding"}
        assert len(found["embedding"]) == 1280
        offered = client.get("/v2/models/efficientnet-lite0").json()["outputs"]
        assert [each["name"] for each in offered] == ["embedding", "features"]
        pixels = np.zeros((1, 64, 64, 3), np.uint8)
        body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": pixels.tolist()}]}
        outputs = client.post("/v2/models/efficientnet-lite0/infer", json=body).json()["outputs"]
        expected = [("embedding", [1, 1280]), ("features", [1, 1776])]
        assert [(each["name"], each["shape"]) for each in outputs] == expected
        map_ = {"name": "map", "datatype": "FP32", "shape": [1, 1776, 2, 2], "data": [0.0] * 7104}
        refused = client.post("/v2/models/efficientnet-lite0/infer", json={"inputs": [map_]})
        assert refused.status_code == 400
        assert "or in its place embedding and features" in refused.json()["error"]
        assert client.post("/v1/embeddings", json={"model": "efficientnet-lite0", "input": []}).status_code != 500


def test_the_scorer_writes_the_columns_that_there_are(models: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/bag.png").write_bytes(BAG)
    arguments = ["score", str(tmp_path / "images"), "--models", str(models), "--out", str(tmp_path / "rows.jsonl")]
    assert service([*arguments, "--operation", "encode"]) == 0
    [row] = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(row["embedding"]) == 1280
    assert not {"label", "score", "error"} & row.keys()


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ("predict", "has neither head nor anomaly calibration; use --operation encode"),
        ("anomaly", "has no anomaly calibration, so it cannot anomaly; it can: encode, predict"),
    ],
)
def test_what_the_scorer_cannot_do_is_said(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], operation: str, says: str
) -> None:
    (tmp_path / "bag.png").write_bytes(BAG)
    arguments = ["score", str(tmp_path / "bag.png"), "--models", str(models), "--out", str(tmp_path / "rows.jsonl")]
    assert service([*arguments, "--operation", operation]) == 2
    assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def grafted(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags and trousers, where torch is not installed."""
    here = tmp_path_factory.mktemp("grafted")
    for kind in ("bag", "trouser"):
        shutil.copytree(draw_folder(here / f"drawn-{kind}", 6, seed=0) / kind, here / "pair" / kind)
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'onnxscript', 'httpx', 'rich'));"
    code = f"{blocked} from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "graft", "pair", "--base", str(models / "efficientnet-lite0/1")]
    done = subprocess.run(command, cwd=here, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return here / "models"


def test_classes_are_grafted_onto_it_without_torch_served_and_explained(grafted: Path, bundle: Bundle) -> None:
    made = load(grafted / "pair/1")
    assert made.manifest.provenance.weights == bundle.manifest.provenance.weights
    assert LITE0.sha256 in made.documents["card.md"].decode()
    assert made.manifest.files["encoder.onnx"] == bundle.manifest.files["encoder.onnx"]
    with serving(Settings(models=grafted)) as client:
        for kind in ("bag", "trouser"):
            image = png(garment(kind, side=36))
            [plain] = client.post("/v1/classify", content=image, headers=PNG).json()["results"]
            assert plain["label"] == kind
            [explained] = client.post("/v1/classify?explain=true", content=image, headers=PNG).json()["results"]
            assert explained.pop("explanation")
            assert explained == plain


def test_the_places_add_up_to_the_prototypes_logits_without_their_bias(grafted: Path) -> None:
    made = load(grafted / "pair/1")
    images = np.stack([preprocess(png(garment(kind, side=36)), made.manifest.input) for kind in ("bag", "trouser")])
    encoded = made.encode(images, explain=True)
    off = made.logits(encoded) - made.explain(encoded).sum(axis=(2, 3))
    assert np.abs(off - off[0]).max() < 1e-3, "the same for every image: the bias"
    assert np.ptp(made.logits(encoded)) > 1


def test_prototypes_by_the_cosine_cannot_be_explained(grafted: Path, models: Path) -> None:
    base, shots = str(models / "efficientnet-lite0/1"), str(grafted.parent / "pair")
    assert main(["graft", shots, "--base", base, "--models", str(grafted / "c"), "--distance", "cosine"]) == 0
    assert "explain" not in load(grafted / "c/pair/1").operations


def test_an_anomaly_score_is_fitted_on_it(models: Path, tmp_path: Path) -> None:
    normals = draw_folder(tmp_path / "normals", 12, seed=1)
    shutil.copytree(models, tmp_path / "models")
    folder = str(tmp_path / "models/efficientnet-lite0/1")
    assert main(["calibrate", folder, str(normals), "--false-alarm-rate", "0.05"]) == 0
    after = load(tmp_path / "models/efficientnet-lite0/2")
    assert after.manifest.anomaly is not None
    assert [each.name for each in after.manifest.anomaly.distances] == ["embedding.mahalanobis"]
    assert after.manifest.provenance.weights is not None
    assert LITE0.sha256 in after.documents["card.md"].decode()
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    assert all(score.anomalous for score in after.anomaly(noise))


def test_there_is_nothing_to_measure_without_classes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_folder(tmp_path / "drawn", 2, seed=1)
    command = ["evaluate", str(models / "efficientnet-lite0/1"), "--data"]
    assert main([*command, str(tmp_path / "drawn/bag")]) == 0
    assert "nothing to measure: the bundle can encode, predict" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "drawn")]) == 0
    assert "cluster_nmi" in capsys.readouterr().out


def test_weights_of_your_own_are_a_base_whose_publisher_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = build(Network(backbone="resnet18", weights=None), (32, 32, 3))
    torch.save(net.encoder.state_dict(), tmp_path / "mine.pth")
    models = str(tmp_path / "models")
    command = ["base", "resnet18", "--weights", str(tmp_path / "mine.pth"), "--side", "32", "--models", models]
    assert main([*command, "--name", "mine", "--resize", "crop"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "models/mine/1")
    assert "mine.pth, publisher not known, licence not known" in told.err
    bundle = load(tmp_path / "models/mine/1")
    assert bundle.manifest.input.resize == "crop"
    assert bundle.manifest.provenance.weights is not None
    assert (bundle.manifest.provenance.weights.file, bundle.manifest.provenance.weights.licence) == ("mine.pth", None)
    assert str(tmp_path) not in (tmp_path / "models/mine/1/manifest.json").read_text()


def test_a_trained_model_does_not_become_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "models/fashion-mnist-seed", tmp_path / "models/fashion-mnist-seed")
    command = ["base", "resnet18", "--weights", "nowhere.pth", "--models", str(tmp_path / "models")]
    assert main([*command, "--name", "fashion-mnist-seed"]) == 2
    assert "was not made by base" in capsys.readouterr().err
    assert main(command) == 2
    assert "nowhere.pth: cannot be read" in capsys.readouterr().err
