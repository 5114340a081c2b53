"""Prediction sets over a real socket, on the fast path and on the ordinary one, and from the offline scorer."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support import LABELS, assert_problem, save_tiny, serving, tiny, with_sets

from app.__main__ import main
from app.api.schemas import ClassifyResponse, PredictResponse
from app.bundle import Bundle, load, save
from app.bundle.drawings import golden_files
from app.bundle.scoring import label_probabilities
from app.bundle.sets import SetOptions, shares_of
from app.settings import Settings

FILES = golden_files()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    fields, files = tiny()
    save(models, "sure", fields, with_sets(files))
    save_tiny(models, "older")
    save_tiny(models, "several", thresholds=(0.5, 0.5, 0.5))
    return models


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load(folder / "sure/1")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=folder, default_model="sure")) as client:
        yield client


def expected(bundle: Bundle, options: SetOptions) -> list[set[str]]:
    images = np.stack([bundle.preprocess(file) for file in FILES])
    assert bundle.sets is not None
    assert bundle.manifest.classifier is not None
    rows = label_probabilities(bundle.logits(bundle.encode(images)), bundle.manifest.classifier)
    members = bundle.sets.members(rows, options, shares_of(images))
    return [{LABELS[index] for index in np.flatnonzero(row)} for row in members]


@pytest.mark.parametrize("path", ["classify", "predict"])
@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("coverage=0.5", SetOptions(0.5)),
        ("coverage=0.95", SetOptions(0.95)),
        ("coverage=0.9&sets=raps", SetOptions(0.9, "raps")),
        ("coverage=0.9&sets=lac&conditional=true&top_k=1", SetOptions(0.9, "lac", conditional=True)),
    ],
)
def test_each_result_has_its_set_the_likeliest_label_first(
    client: httpx.Client, bundle: Bundle, path: str, query: str, options: SetOptions
) -> None:
    before = handed_over(client)
    answer = client.post(f"/v1/{path}?{query}", files=[("image", file) for file in FILES])
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    (ClassifyResponse if path == "classify" else PredictResponse).model_validate(answer.json())
    assert [set(result["set"]) for result in results] == expected(bundle, options)
    assert any(result["set"] for result in results)
    for result in results:
        if "top_k" not in query:
            assert result["set"] == [label for label in result["probabilities"] if label in result["set"]]
    assert handed_over(client) == before, "the fast path answers"
    slow = client.post(f"/v1/{path}?{query}", files=[("image", file) for file in FILES], headers={"expect": ""})
    assert [result["set"] for result in slow.json()["results"]] == [result["set"] for result in results]


def handed_over(client: httpx.Client) -> list[str]:
    return [line for line in client.get("/metrics").text.splitlines() if line.startswith("graft_fast_path_handovers")]


def test_without_a_coverage_there_is_no_set(client: httpx.Client) -> None:
    assert "set" not in client.post("/v1/classify", content=FILES[0], headers={"content-type": "image/png"}).json()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("coverage=0", "query.coverage: Input should be greater than 0, not '0'"),
        ("coverage=1", "query.coverage: Input should be less than 1, not '1'"),
        ("coverage=much", "query.coverage: "),
        ("coverage=nan", "query.coverage: "),
        ("coverage=0.9&sets=aps", "query.sets: Input should be 'lac' or 'raps'"),
        ("sets=raps", "give coverage, too"),
        ("conditional=true", "give coverage, too"),
        ("coverage=0.999", "coverage: 0.999 cannot be promised by 199 calibration images, which reach 0.995 at most"),
        ("coverage=0.99&conditional=true", "coverage: 0.99 cannot be promised by "),
    ],
)
@pytest.mark.parametrize("path", ["classify", "predict"])
def test_what_cannot_be_promised_is_refused(client: httpx.Client, path: str, query: str, message: str) -> None:
    answer = client.post(f"/v1/{path}?{query}", content=FILES[0], headers={"content-type": "image/png"})
    assert_problem(answer, 400, "malformed-request", message)


def test_a_model_that_cannot_say_why(client: httpx.Client) -> None:
    for model, message in (
        ("older", "model older@1 has no labelled calibration images, so it cannot give prediction sets; it can: "),
        ("several", "model several@1 has independent labels"),
    ):
        answer = client.post(f"/v1/classify?coverage=0.9&model={model}", files={"image": FILES[0]})
        assert_problem(answer, 409, "operation-unavailable", message)
    operations = {each["name"]: each["operations"] for each in client.get("/v1/models").json()["models"]}
    assert "sets" in operations["sure"]
    assert "sets" not in operations["older"] + operations["several"]


def test_the_scorer_writes_the_same_sets_and_does_not_mix_them(
    folder: Path, client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, file in enumerate(FILES):
        (tmp_path / f"{number:02}.png").write_bytes(file)
    paths = [str(path) for path in sorted(tmp_path.glob("*.png"))]

    def score(out: str, *options: str) -> int:
        return main(["score", *paths, "--out", str(tmp_path / out), "--models", str(folder), "--model", *options])

    assert score("a.jsonl", "sure", "--coverage", "0.9", "--sets", "raps", "--operation", "classify") == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    answer = client.post("/v1/classify?coverage=0.9&sets=raps", files=[("image", file) for file in FILES]).json()
    assert [row["set"] for row in rows] == [result["set"] for result in answer["results"]]
    assert {row["sets"] for row in rows} == {"raps at 0.9"}
    assert score("a.csv", "sure", "--coverage", "0.9") == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        cells = [row["set"] for row in csv.DictReader(file)]
    answer = client.post("/v1/classify?coverage=0.9", files=[("image", file) for file in FILES]).json()
    assert cells == ["|".join(result["set"]) for result in answer["results"]]
    capsys.readouterr()
    for message, out, *options in (
        ("sets by lac at 0.9, but this run has lac at 0.8", "a.csv", "sure", "--coverage", "0.8"),
        ("made with --coverage", "a.csv", "sure"),
        ("--coverage: 0.999 cannot be promised", "b.csv", "sure", "--coverage", "0.999"),
        ("give --coverage, too", "b.csv", "sure", "--conditional"),
        ("no labelled calibration images", "b.csv", "older", "--coverage", "0.9"),
        ("and anomaly returns none", "b.csv", "sure", "--coverage", "0.9", "--operation", "anomaly"),
    ):
        assert score(out, *options) == 2
        assert message in capsys.readouterr().err
