from pathlib import Path

import numpy as np
import pytest
from support import LABELS, save_tiny

from app.bundle import load
from training.data.imageset import ImageSet
from training.measure.metrics import bundle_metrics, calibration_error, class_table, confusion, confusion_table

RNG = np.random.default_rng(0)


def test_metrics_are_of_the_bundle_as_it_is_served(models: Path) -> None:
    bundle = load(models / "tiny/1")
    images = RNG.integers(0, 256, (300, *bundle.manifest.input.shape), dtype=np.uint8)
    served = np.array([c.index for c in bundle.classify(images)])
    labels = np.where(np.arange(300) % 4 == 0, (served + 1) % 3, served)  # every fourth is wrong
    found = {m.name: m for m in bundle_metrics(bundle, ImageSet(images, labels, LABELS), "made up")}
    assert found["accuracy"].value == pytest.approx(0.75)
    recalls = [np.mean(served[labels == label] == label) for label in np.unique(labels)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    alarms = [score.anomalous for score in bundle.anomaly(images)]
    assert found["false_alarm_rate"].value == pytest.approx(np.mean(alarms))
    assert found["reconstruction_mse"].value > 0
    assert 0 <= found["cluster_nmi"].value <= 1
    assert found["calibration_error_before_temperature"] == found["calibration_error"].model_copy(
        update={"name": "calibration_error_before_temperature"}
    ), "the tiny bundle's temperature is 1"
    unusual = found.pop("out_of_distribution_auroc")
    assert 0 <= unusual.value <= 1
    assert f"noise ({unusual.value:.4f})" in unusual.how or f"drawn textures ({unusual.value:.4f})" in unusual.how
    assert all(m.images == 300 and "made up" in m.how for m in found.values())


def test_a_bundle_without_a_head_has_no_accuracy(tmp_path: Path) -> None:
    bundle = load(save_tiny(tmp_path, head=False))
    images = RNG.integers(0, 256, (5, *bundle.manifest.input.shape), dtype=np.uint8)
    names = {m.name for m in bundle_metrics(bundle, ImageSet(images, np.array([], np.int64), ()), "x")}
    assert names == {"reconstruction_mse", "false_alarm_rate", "out_of_distribution_auroc"}


def test_the_share_of_sound_images_with_a_region_is_measured_though_no_defect_is_there(tmp_path: Path) -> None:
    """Of four images one is bright, unlike any remembered patch."""
    bundle, plain = load(save_tiny(tmp_path, patches=True)), load(save_tiny(tmp_path))
    images = np.zeros((4, *bundle.manifest.input.shape), np.uint8)
    images[2] = 255
    data = ImageSet(images, np.array([], np.int64), ())
    assert {m.name: m.value for m in bundle_metrics(bundle, data, "x")}["false_region_rate"] == 0.25
    assert "false_region_rate" not in {m.name for m in bundle_metrics(plain, data, "x")}


def test_the_table_of_classes_counts_as_its_words_say() -> None:
    labels, found = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 1])
    counts = confusion(labels, found, 3)
    assert counts.tolist() == [[3, 1, 0], [0, 1, 1], [0, 1, 0]]
    head, *rows = [line.split() for line in class_table(counts, ("cat", "dog", "owl"))]
    assert head[:5] == ["class", "precision", "recall", "F1", "images"]
    assert rows[0] == ["cat", "1.0000", "0.7500", "0.8571", "4", "dog", "(1)"]
    assert rows[1] == ["dog", "0.3333", "0.5000", "0.4000", "2", "owl", "(1)"]
    assert rows[2] == ["owl", "0.0000", "0.0000", "0.0000", "1", "dog", "(1)"]
    assert class_table(np.eye(2, dtype=int), ("a", "b"))[1].split()[-1] == "none"


def test_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    confidence = np.full(1000, 0.8)
    assert calibration_error(confidence, np.arange(1000) < 800) == pytest.approx(0.0)
    assert calibration_error(confidence, np.arange(1000) < 500) == pytest.approx(0.3)
    assert calibration_error(np.ones(10), np.ones(10, bool)) == 0.0


def test_the_whole_table_has_every_count() -> None:
    counts = np.array([[1200, 3], [0, 9]])
    assert [line.split() for line in confusion_table(counts, ("cat", "dog"))] == [
        ["cat", "dog"],
        ["cat", "1,200", "3"],
        ["dog", "0", "9"],
    ]
