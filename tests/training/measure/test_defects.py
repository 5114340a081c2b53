from pathlib import Path

import numpy as np
import pytest
from support import draw_inspection, save_tiny, spec

from app.bundle import Bundle, load
from training.__main__ import main
from training.data.imageset import ImageSet
from training.data.splits import train_and_test
from training.measure.defects import TITLES, measure, metrics, of_sets, table
from training.measure.detection import separation
from training.measure.metrics import bundle_metrics
from training.measure.outputs import outputs_of
from training.recipe import Split


def tiny(folder: Path) -> tuple[Bundle, ImageSet]:
    bundle = load(save_tiny(folder / "models", shape=spec(32, 32), head=False))
    draw_inspection(folder / "set", defects=6)
    return bundle, train_and_test(str(folder / "set"), bundle.manifest.input, Split(), seed=0)[1]


def test_all_defects_and_each_kind_against_all_sound_images(tmp_path: Path) -> None:
    bundle, data = tiny(tmp_path)
    scores = outputs_of(bundle, data, "scores", ("scores",)).scores
    found = measure(bundle, data, scores)
    assert found is not None
    assert scores is not None
    assert bundle.manifest.anomaly is not None
    assert [(group.name, group.images, group.masks) for group in found.groups] == [
        ("all", 12, 12),
        ("dot", 6, 6),
        ("line", 6, 6),
    ]
    assert found.sound == 6
    for group in found.groups:
        assert set(group.measures) == set(TITLES)
    dots = scores[data.labels == data.classes.index("dot")]
    alone = separation(scores[~data.defective], dots, bundle.manifest.anomaly.threshold)
    assert {name: found.groups[1].measures[name] for name in alone} == alone


def test_the_normal_images_of_metrics_are_the_sound_ones(tmp_path: Path) -> None:
    bundle, data = tiny(tmp_path)
    made = {metric.name: metric for metric in bundle_metrics(bundle, data, "made up")}
    sound = data.without_defects()
    alone = {metric.name: metric for metric in bundle_metrics(bundle, sound, "made up")}
    for name in ("reconstruction_mse", "false_alarm_rate", "out_of_distribution_auroc"):
        assert (made[name].value, made[name].images) == (alone[name].value, alone[name].images)
    assert set(made) == set(alone) | set(TITLES)
    assert "cluster_nmi" not in made
    assert made["image_auroc"].images == 18
    assert made["recall_at_threshold"].images == 12
    assert "dot 0." in made["image_auroc"].how
    assert "95 % 0." in made["image_auroc"].how


def test_without_sound_images_recall_is_all_that_is_known(tmp_path: Path) -> None:
    bundle, data = tiny(tmp_path)
    alone = data.take(np.flatnonzero(data.defective))
    found = measure(bundle, alone, outputs_of(bundle, alone, "scores", ("scores",)).scores)
    assert found is not None
    assert {"recall_at_threshold", "pixel_auroc"} <= set(found.groups[0].measures)
    assert "image_auroc" not in found.groups[0].measures
    assert len(metrics(found, "how", 0.05)) == len(found.groups[0].measures)


def test_no_defects_or_no_score_give_nothing(tmp_path: Path) -> None:
    bundle, data = tiny(tmp_path)
    assert measure(bundle, data.without_defects(), np.zeros(6)) is None
    assert measure(bundle, data, None) is None


def test_the_table_has_a_block_for_each_kind() -> None:
    rng = np.random.default_rng(0)
    anomalies = ImageSet(np.zeros((20, 1, 1, 1), np.uint8), np.repeat([0, 1], 10), ("crack", "hole"))
    found = of_sets(rng.normal(size=30), anomalies, rng.normal(2, 1, 20), threshold=1.6)
    head, *rows = table(found, 0.05)
    assert head.split("  ")[-4:] == ["image AUROC", "average precision", "best F1", "recall at 5.00%"]
    assert [row.split("  ")[0] for row in rows[::3]] == ["all (20)", "crack (10)", "hole (10)"]
    value = found.groups[2].measures["image_auroc"]
    assert [row.split()[-4] for row in rows[6:]] == [f"{each:.4f}" for each in value]


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(tmp_path)
    bundle = str(tmp_path / "models/tiny/1")
    assert main(["evaluate", bundle, "--data", str(tmp_path / "set")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("false_alarm_rate") and "over 6 images (stated 0.05;" in line for line in lines)
    [start] = [number for number, line in enumerate(lines) if line.startswith("defects")]
    assert [line.split("  ")[0] for line in lines[start + 1 :: 3]] == ["all (12)", "dot (6)", "line (6)"]
    assert not any(line.startswith("image_auroc") for line in lines)


def test_a_classifier_is_measured_as_a_detector_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = save_tiny(tmp_path / "models", shape=spec(32, 32))
    draw_inspection(tmp_path / "set")
    assert main(["evaluate", str(bundle), "--data", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert "all (8)" in out
    assert "accuracy" not in out
