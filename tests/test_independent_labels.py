"""A bundle whose labels are independent, through everything that serves it: /v1, /v2 and its client, score, drift."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from support import LABELS, draw_folder, save_tiny, serving, tiny

from app.__main__ import main
from app.api.schemas import ClassifyResponse, IndependentResult, PredictResponse
from app.bundle import Bundle, load, save
from app.bundle.drawings import golden_files
from app.bundle.drift import CONFIDENCES, EMBEDDINGS
from app.bundle.encode import png
from app.settings import Settings

FILES = golden_files()
THRESHOLDS = (0.04, 0.85, 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    save_tiny(models, "one-label")
    save_tiny(models, "several", thresholds=THRESHOLDS)
    return models


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load(folder / "several/1")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=folder, default_model="several")) as client:
        yield client


def expected(bundle: Bundle) -> np.ndarray:
    """(N, K) by the formula, from the logits."""
    images = np.stack([bundle.preprocess(file) for file in FILES])
    logits = bundle.logits(bundle.encode(images)).astype(np.float64)
    return np.asarray(1 / (1 + np.exp(-logits)))


def asked(client: httpx.Client, path: str, **query: object) -> list[dict[str, Any]]:
    answer = client.post(path, params=query, files=[("image", file) for file in FILES])
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    schema = ClassifyResponse if "classify" in path else PredictResponse
    validated = schema.model_validate_json(answer.content)
    assert json.loads(validated.model_dump_json(exclude_none=True))["results"] == results
    return results


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/predict"])
def test_a_result_has_the_labels_that_reach_their_thresholds(client: httpx.Client, bundle: Bundle, path: str) -> None:
    rows, counts = expected(bundle), set()
    for result, row in zip(asked(client, path), rows, strict=True):
        order = sorted(range(3), key=lambda index: -row[index])
        present = [index for index in order if row[index] >= THRESHOLDS[index]]
        counts.add(len(present))
        assert [(each["label"], each["index"]) for each in result["labels"]] == [(LABELS[i], i) for i in present]
        assert [each["probability"] for each in result["labels"]] == pytest.approx([row[i] for i in present])
        assert list(result["probabilities"]) == [LABELS[i] for i in order]
        assert list(result["probabilities"].values()) == pytest.approx([row[i] for i in order])
        assert result["confidence"] == pytest.approx(np.maximum(row, 1 - row).min())
        assert not {"label", "index"} & result.keys()
    assert counts == {0, 1, 3}, "the images differ in how many labels they have"


def test_top_k_limits_probabilities_and_not_the_labels(client: httpx.Client) -> None:
    whole, cut = asked(client, "/v1/classify"), asked(client, "/v1/classify", top_k=1)
    assert [each["labels"] for each in cut] == [each["labels"] for each in whole]
    assert {len(each["probabilities"]) for each in cut} == {1}
    assert all("in_domain" in each for each in asked(client, "/v1/classify", in_domain=True))


def test_a_model_of_one_label_answers_as_before(client: httpx.Client, folder: Path) -> None:
    direct = load(folder / "one-label/1")
    for file, result in zip(FILES, asked(client, "/v1/classify", model="one-label"), strict=True):
        [found] = direct.classify(direct.preprocess(file)[None])
        assert result == {
            "label": found.label,
            "index": found.index,
            "confidence": pytest.approx(found.confidence),
            "probabilities": pytest.approx(dict(found.ranked)),
        }


def test_its_schema_is_one_of_two_or_a_problem(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    items = description["components"]["schemas"]["ClassifyResponse"]["properties"]["results"]["items"]
    kinds = [each["$ref"].rpartition("/")[2] for each in items["anyOf"]]
    assert kinds == ["ClassifyResult", "IndependentResult", "Problem"]  # the last, of a partial request
    assert "label" in description["components"]["schemas"]["ClassifyResult"]["required"]
    assert IndependentResult.model_fields.keys() >= {"labels", "confidence", "probabilities"}


def test_the_manifest_says_so(client: httpx.Client) -> None:
    classifier = client.get("/v1/models/several").json()["manifest"]["classifier"]
    assert classifier == {"labels": list(LABELS), "temperature": 1.0, "thresholds": list(THRESHOLDS)}


def test_the_confidence_of_each_image_is_measured(client: httpx.Client, bundle: Bundle) -> None:
    def total() -> float:
        page = client.get("/metrics").text
        return sum(
            float(line.split()[-1])
            for line in page.splitlines()
            if line.startswith('graft_confidence_sum{model="several"')
        )

    before, rows = total(), expected(bundle)
    asked(client, "/v1/classify")
    assert total() - before == pytest.approx(np.maximum(rows, 1 - rows).min(axis=1).sum())


def test_the_protocols_own_client_gets_a_probability_for_each_label(client: httpx.Client, bundle: Bundle) -> None:
    tensor = triton.InferInput("image", [len(FILES)], "BYTES")
    tensor.set_data_from_numpy(np.array(FILES, np.object_))
    names = [triton.InferRequestedOutput(name) for name in ("logits", "probabilities")]
    likeliest = [triton.InferRequestedOutput("probabilities", class_count=2)]
    with triton.InferenceServerClient(client.base_url.netloc.decode()) as other:
        found = other.infer("several", [tensor], outputs=names)
        classes = other.infer("several", [tensor], outputs=likeliest).as_numpy("probabilities")
    rows = expected(bundle)
    assert found.as_numpy("probabilities") == pytest.approx(rows, abs=1e-6)
    assert found.as_numpy("logits") == pytest.approx(np.log(rows / (1 - rows)), abs=1e-4)
    for row, cells in zip(rows, classes, strict=True):
        assert [int(cell.split(b":")[1]) for cell in cells] == np.argsort(-row, kind="stable")[:2].tolist()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_score_writes_the_labels_of_each_image(folder: Path, bundle: Bundle, tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    draw_folder(tmp_path / "photos", 4, seed=0)
    out = tmp_path / f"out.{suffix}"
    command = ["score", str(tmp_path / "photos"), "--out", str(out), "--operation", "classify", "--model", "several"]
    command += ["--models", str(folder)]
    assert main(command) == 0
    assert main(command) == 0, "what is complete is resumed"
    rows: list[dict[str, Any]]
    if suffix == "csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
    assert len(rows) == 16
    for row in rows:
        [direct] = bundle.classify(bundle.preprocess(Path(row["path"]).read_bytes())[None])
        assert direct.present is not None
        if suffix == "jsonl":
            assert [each["label"] for each in row["labels"]] == list(direct.present)
            assert row["probabilities"] == pytest.approx(dict(direct.ranked))
        else:
            assert row["labels"] == "|".join(direct.present)
            assert {label: float(row[f"p:{label}"]) for label in LABELS} == pytest.approx(dict(direct.ranked))


def test_drift_compares_the_confidence_of_the_least_sure_label(tmp_path: Path) -> None:
    """With the reference's own images it is stable, with others it is not."""
    fields, files = tiny(thresholds=THRESHOLDS)
    plain = load(save(tmp_path, "plain", fields, files))
    rng = np.random.default_rng(0)
    dim = [png(Image.fromarray(rng.integers(0, 120, (6, 4), dtype=np.uint8))) for _ in range(300)]
    encoded = plain.encode(np.stack([plain.preprocess(file) for file in dim]))
    rows = 1 / (1 + np.exp(-plain.logits(encoded).astype(np.float64)))
    with np.load(io.BytesIO(files["reference.npz"])) as stored:
        arrays = dict(stored)
    arrays |= {EMBEDDINGS: encoded["embedding"], CONFIDENCES: np.maximum(rows, 1 - rows).min(axis=1)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    save(tmp_path, "several", fields, {**files, "reference.npz": buffer.getvalue()})
    with serving(Settings(models=tmp_path, default_model="several", max_images=300)) as client:
        found = []
        for images in (dim, [png(Image.new("L", (4, 6), 255))] * 300):
            answer = client.post("/v1/classify", files=[("image", image) for image in images])
            assert answer.status_code == 200, answer.text
            found.append(client.get("/v1/models/several/drift").json()["confidence_stability"])
    assert found[0] < 0.1
    assert found[1] > 0.25
