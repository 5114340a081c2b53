from pathlib import Path

import numpy as np

from benchmarks.methods.shots import QUERIES, SHOTS, calibration_line, drawn, eightfold, halved, only, solved
from training import recipe
from training.data.imageset import ImageSet

RNG = np.random.default_rng(0)


def images(each: int = 40, classes: int = 6) -> ImageSet:
    labels = np.repeat(np.arange(classes), each)
    return ImageSet(RNG.integers(0, 256, (len(labels), 4, 4, 1), dtype=np.uint8), labels, tuple("abcdef"[:classes]))


def test_some_classes_are_numbered_anew_and_keep_their_names() -> None:
    kept = only(images(), np.array([1, 4]))
    assert kept.classes == ("b", "e")
    assert np.bincount(kept.labels).tolist() == [40, 40]


def test_no_class_is_both_learnt_from_and_asked(tmp_path: Path) -> None:
    np.savez(f"{tmp_path}/train.npz", images=images().images, labels=images().labels, classes=np.array(list("abcdef")))
    np.savez(f"{tmp_path}/test.npz", images=images().images, labels=images().labels, classes=np.array(list("abcdef")))
    chosen = recipe.load("episodic", [f"source={tmp_path}", f"target={tmp_path}", "input.height=4", "input.width=4"])
    splits = set()
    for seed in range(5):
        halves = halved(chosen, seed)
        assert halves.train.classes == halves.validation.classes
        assert not set(halves.train.classes) & set(halves.unusual.classes)
        assert len(halves.train.classes) == len(halves.unusual.classes) == 3
        splits.add(halves.train.classes)
    assert len(splits) > 1, "each seed draws its own"


def test_turned_images_belong_to_classes_of_their_own() -> None:
    before = images()
    after = eightfold(before)
    assert len(after.classes) == 48
    assert (after.labels % 6 == before.labels).all()
    straight = after.labels < 6
    assert straight.any()
    assert (after.images[straight] == before.images[straight]).all()


def test_a_task_has_its_shots_and_its_queries_and_none_is_both() -> None:
    labels = images().labels
    shots, known, queries, requested = drawn(labels, np.array([0, 3, 5]), RNG)
    assert (len(shots), len(queries)) == (3 * SHOTS, 3 * QUERIES)
    assert not set(shots) & set(queries)
    assert (np.array([0, 3, 5])[known] == labels[shots]).all()
    assert (np.array([0, 3, 5])[requested] == labels[queries]).all()


def test_what_tells_nothing_is_guessed_and_what_tells_all_is_solved() -> None:
    labels = images().labels
    noise = RNG.normal(size=(len(labels), 5)).astype(np.float32)
    assert abs(solved(noise, labels, [], 0, "mahalanobis").mean() - 1 / 6) < 0.03
    assert solved(noise + 100 * np.eye(6, 5, dtype=np.float32)[labels], labels, [], 0, "cosine").mean() > 0.99
    assert "the stated bound holds in" in calibration_line(noise, labels, [], 0)
