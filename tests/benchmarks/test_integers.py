from pathlib import Path

import numpy as np
import onnx
import pytest

from app.bundle import load
from benchmarks.bundles import SEED, bundle
from benchmarks.integers import make
from benchmarks.workloads import small
from training.data.imageset import ImageSet


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    whole = load(bundle(SEED), threads=1)
    return np.stack([whole.preprocess(file) for [file] in small(200)(3)])


def test_a_bundle_in_integers_says_what_the_bundle_says(drawn: np.ndarray, tmp_path: Path) -> None:
    folder = make(bundle(SEED), ImageSet(drawn[:100], np.array([], np.int64), ()), tmp_path)
    whole, made = load(bundle(SEED), threads=1), load(folder, threads=1)
    nodes = {node.op_type for node in onnx.load(folder / "encoder.onnx").graph.node}
    assert "QuantizeLinear" in nodes
    assert (made.name, made.manifest.classifier) == (whole.name, whole.manifest.classifier)
    before, after = (np.array([output.label for output in each.classify(drawn[100:])]) for each in (whole, made))
    assert (before == after).mean() > 0.9


def test_it_claims_no_number_that_was_measured_of_the_other(drawn: np.ndarray, tmp_path: Path) -> None:
    folder = make(bundle(SEED), ImageSet(drawn[:100], np.array([], np.int64), ()), tmp_path)
    made = load(folder, threads=1)
    assert made.manifest.metrics == ()
    assert not made.documents
