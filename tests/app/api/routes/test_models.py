import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support import LABELS, LATENT, assert_problem, save_tiny, serving, tiny

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.bundle.manifest import Weights
from app.bundle.store import save
from app.inference import repository
from app.settings import Settings
from training.score.reference import with_arrays


def test_the_list_says_what_each_model_can_do(client: httpx.Client) -> None:
    [model] = client.get("/v1/models").json()["models"]
    assert (model["name"], model["version"], model["default"]) == ("tiny", 1, True)
    assert model["operations"] == ["classify", "encode", "reconstruct", "anomaly", "predict", "decode"]
    assert model["milliseconds"] > 0
    assert model["labels"] == list(LABELS)
    assert model["input"] == [6, 4, 1]
    assert model["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize("name", ["tiny", "tiny@1"])
def test_one_model_shows_its_manifest(client: httpx.Client, models: Path, name: str) -> None:
    body = client.get(f"/v1/models/{name}").json()
    assert body["manifest"] == json.loads((models / "tiny/1/manifest.json").read_text())


def test_the_weights_that_a_network_began_with_are_shown(tmp_path: Path) -> None:
    fields, files = tiny()
    weights = Weights(backbone="resnet18", file="a.pth", sha256="0" * 64, publisher="somebody", licence="MIT")
    provenance = fields["provenance"].model_copy(update={"weights": weights})
    save(tmp_path, "begun", {**fields, "provenance": provenance}, files)
    save_tiny(tmp_path, "own")
    with serving(Settings(models=tmp_path)) as client:
        models = client.get("/v1/models").json()["models"]
        assert {model["name"]: model["weights"] for model in models} == {"begun": weights.model_dump(), "own": None}
        assert client.get("/v1/models/begun").json()["manifest"]["provenance"]["weights"] == weights.model_dump()


def test_what_a_bundle_carries_to_be_looked_at(tmp_path: Path) -> None:
    fields, files = tiny()
    files |= {"card.md": b"# A card", "report.html": b"<h1>A report</h1>"}
    points = {"map.points": np.array([[0.123456789, 1]]), "map.labels": np.array([2])}
    plane = {"map.mean": np.zeros(LATENT), "map.directions": np.eye(LATENT, 2)}
    files["reference.npz"] = with_arrays(files["reference.npz"], {**points, **plane})
    save(tmp_path, "whole", fields, files)
    save_tiny(tmp_path, "bare")
    with serving(Settings(models=tmp_path)) as client:
        assert client.get("/v1/models/whole").json()["parts"] == ["card", "report", "map"]
        card = client.get("/v1/models/whole/card")
        assert (card.text, card.headers["content-type"]) == ("# A card", "text/markdown; charset=utf-8")
        report = client.get("/v1/models/whole@1/report")
        assert (report.text, report.headers["content-type"]) == ("<h1>A report</h1>", "text/html; charset=utf-8")
        assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'; ")
        body = client.get("/v1/models/whole/map").json()
        assert body["points"] == [[0.12346, 1.0]]
        assert body["labels"] == [2]
        assert np.array(body["directions"]).shape == (LATENT, 2)

        assert client.get("/v1/models/bare").json()["parts"] == []
        for part in ("card", "report", "map"):
            answer = client.get(f"/v1/models/bare/{part}")
            assert_problem(answer, 404, "part-missing", f"bare@1 has no {part}; it has: none")


@pytest.mark.parametrize("name", ["none", "tiny@9", "..%2Ftiny", "%00"])
def test_a_model_that_is_not_there_is_404(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/v1/models/{name}")
    assert_problem(answer, 404, "not-found" if "%2F" in name else "unknown-model")


def test_a_bundle_that_fails_in_a_way_nobody_foresaw_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "strange"):
        save_tiny(tmp_path, name)
    real = repository.load

    def load(folder: Path, *how: Any) -> object:
        if folder.parent.name == "strange":
            raise ZeroDivisionError("a secret")
        return real(folder, *how)

    monkeypatch.setattr(repository, "load", load)  # nothing known fails so: known failures are BundleErrors
    with serving(Settings(models=tmp_path)) as client:
        body = client.get("/v1/models").json()
        assert [m["name"] for m in body["models"]] == ["good"]
        assert body["refused"] == [
            {"bundle": "strange/1", "reason": "strange/1: unexpected ZeroDivisionError; see the log"}
        ]


def test_the_highest_version_answers_and_a_bad_one_is_refused_not_fatal(tmp_path: Path) -> None:
    for seed in range(3):
        save_tiny(tmp_path, "twin", seed=seed)
    save_tiny(tmp_path, "alpha", head=False)
    weights = tmp_path / "twin/3/encoder.onnx"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with serving(Settings(models=tmp_path, default_model="twin")) as client:
        body = client.get("/v1/models").json()
        found = [(m["name"], m["version"], m["default"]) for m in body["models"]]
        assert found == [("alpha", 1, False), ("twin", 1, False), ("twin", 2, True)]
        [refused] = body["refused"]
        assert refused["bundle"] == "twin/3"
        assert "SHA-256" in refused["reason"]
        assert str(tmp_path) not in json.dumps(body)
        image = {"image": png(garment("bag"))}
        assert client.post("/v1/classify", files=image).json()["model"]["version"] == 2
        assert client.post("/v1/classify?model=twin@1", files=image).json()["model"]["version"] == 1
        answer = client.post("/v1/classify?model=alpha", files=image)
        assert_problem(answer, 409, "operation-unavailable", "it can: encode")
