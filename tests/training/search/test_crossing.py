"""What is said of an image does not depend on its own label, nor on anything that its fold teaches."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import draw_folder

from training import recipe as recipes
from training.__main__ import main
from training.data.material import Material, gather
from training.errors import TrainingError
from training.recipe import Recipe
from training.search.crossing import Crossing

SMALL = ("input.height=16", "input.width=16", "network.width=4", "precision=fp32", "false_alarm_rate=0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("crossed") / "set", 9, seed=3)


def frozen(folder: Path) -> Recipe:
    """The encoder is a backbone that nothing has trained."""
    network = ("network.backbone=efficientnet-lite0", "input.height=32", "input.width=32", "false_alarm_rate=0.1")
    return recipes.load(
        "photos", [f"source={folder}", f"target={folder}", *network, "split.folds=3", "split.repeats=2"]
    )


def with_other_labels(material: Material, held: np.ndarray) -> Material:
    """The labels of the held images are moved on by one."""
    labels = material.target.labels.copy()
    labels[held] = (labels[held] + 1) % len(material.target.classes)
    changed = replace(material.target, labels=labels)
    return replace(material, target=changed, source=changed)


def test_labels_of_a_fold_do_not_move_what_is_said_of_it(folder: Path, tmp_path: Path) -> None:
    recipe = frozen(folder)
    material = gather(recipe)
    crossing = Crossing(recipe, material, tmp_path / "a")
    before, held = crossing.logits(1), crossing.held(1)
    other = Crossing(recipe, with_other_labels(material, held), tmp_path / "b")
    assert np.array_equal(other.held(1), held)
    assert np.array_equal(other.logits(1), before)
    assert not np.array_equal(other.logits(0), crossing.logits(0)), "these labels teach the head of another fold"


def test_a_fold_that_is_known_is_not_crossed_again(folder: Path, tmp_path: Path) -> None:
    recipe = frozen(folder)
    material = gather(recipe)
    Crossing(recipe, material, tmp_path).logits(0)
    file = tmp_path / "folds" / "0.npz"
    with np.load(file) as stored:
        np.savez(file, logits=stored["logits"] + 1000)
    again = Crossing(recipe, material, tmp_path)
    assert again.logits(0).min() > 500
    file.write_bytes(b"cut short")
    assert Crossing(recipe, material, tmp_path).logits(0).min() < 500, "a damaged file counts as none"


def test_every_image_is_judged_once_in_each_deal(folder: Path, tmp_path: Path) -> None:
    recipe = frozen(folder)
    crossing = Crossing(recipe, gather(recipe), tmp_path)
    crossed = crossing.everything()
    assert crossed.logits.shape[:2] == (2, len(crossing.material.target))
    assert np.isfinite(crossed.logits).all()
    held = np.array([crossing.held(number) for number in range(3)])
    assert (held.sum(axis=0) == 1).all()
    assert 0 <= crossed.right.min() <= crossed.right.max() <= 1


def test_a_network_that_learns_is_trained_for_each_fold_and_scores_what_it_has_not_seen(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        f"""name = "own"\ntitle = "own"\nsource = "{folder}"\ntarget = "{folder}"\nfalse_alarm_rate = 0.1
[input]\nheight = 16\nwidth = 16\n[network]\nwidth = 4\n[split]\nfolds = 3\n[pretrain]\nepochs = 1
[transfer]\nmode = "full"\nepochs = 1\n[decoder]\nepochs = 0\n[anomaly]\ndistances = "embedding.mahalanobis"\n"""
    )
    assert main(["run", str(recipe), "--run", str(tmp_path / "run"), "--models", str(tmp_path / "models")]) == 0
    said = capsys.readouterr().err
    assert [f"fold {number} of 3" in said for number in (1, 2, 3)] == [True] * 3
    found = np.load(tmp_path / "run" / "folds" / "0.npz")
    assert found["distances"].shape == (len(found["logits"]), 1)
    card = (tmp_path / "models" / "own" / "1" / "card.md").read_text()
    assert "accuracy_across_folds" in card
    assert "It has learnt from all images" in card
    assert "| accuracy |" not in card, "no image was left to test on"
    assert "false_alarm_rate |" not in card, "the threshold comes from these images"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("split.folds=1",), "one fold leaves none to learn from"),
        (("split.repeats=2",), "it is folds that are repeated"),
        (("split.folds=3", "anomaly.folds=0"), "the score needs anomaly.folds, too"),
        (("split.folds=3", 'anomaly.distances=["patches"]', "transfer.mode=full", "pretrain.epochs=1"), "patches"),
    ],
)
def test_folds_that_cannot_be_crossed_are_refused(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipes.load("photos", list(changes))


def test_there_are_no_more_folds_than_the_smallest_class_can_fill(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    material = gather(recipes.load("photos", [f"source={folder}", f"target={folder}", "split.folds=12", *SMALL[:2]]))
    assert material.folds is not None
    assert material.folds.count == 9
    assert "has 9 different images, which make 9 folds" in capsys.readouterr().err
    alike = shutil.copytree(folder, tmp_path / "alike")
    first, *others = sorted(next(each for each in sorted(alike.iterdir())).iterdir())
    for other in others:
        shutil.copy(first, other)
    with pytest.raises(TrainingError, match="has 1 different images, and two are needed to learn and to judge it"):
        gather(recipes.load("photos", [f"source={alike}", f"target={alike}", "split.folds=5", *SMALL[:2]]))
