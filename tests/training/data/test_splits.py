from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import draw_folder, spec

from app.bundle.drawings import GARMENTS, garment
from training.data.imageset import ImageSet
from training.data.splits import (
    groups_and_copies,
    groups_of,
    split,
    stated_groups,
    train_and_held_out,
    train_and_test,
)
from training.errors import TrainingError
from training.recipe import Split


def numbered(labels: list[int]) -> ImageSet:
    """Images whose pixel is their number, so that each can be told apart."""
    images = np.arange(len(labels), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)
    return ImageSet(images, np.array(labels, np.int64), tuple("abc"))


@given(
    counts=st.lists(st.integers(20, 200), min_size=1, max_size=3),
    share=st.floats(0.1, 0.4),
    seed=st.integers(0, 100),
)
def test_a_split_holds_every_image_once_and_every_class_in_its_proportion(
    counts: list[int], share: float, seed: int
) -> None:
    data = numbered([label for label, count in enumerate(counts) for _ in range(count)])
    size = int(len(data) * share)
    parts = split(data, (size, size), seed)
    assert [len(part) for part in parts] == [len(data) - 2 * size, size, size]
    seen = np.concatenate([part.images.reshape(-1, 2).copy().view(np.uint16).ravel() for part in parts])
    assert sorted(seen) == list(range(len(data)))
    for part in parts:
        for label, count in enumerate(counts):
            assert abs((part.labels == label).sum() - count * len(part) / len(data)) <= 2


@given(
    often=st.lists(st.floats(0.02, 0.6), min_size=2, max_size=6), count=st.integers(60, 400), seed=st.integers(0, 99)
)
def test_every_part_has_the_rarest_of_several_labels_in_its_proportion(
    often: list[float], count: int, seed: int
) -> None:
    several = np.random.default_rng(seed).random((count, len(often))) < often
    data = replace(numbered([0] * count), labels=np.array([], np.int64), classes=tuple("abcdef"[: len(often)]))
    parts = split(replace(data, several=several), (count // 5, count // 5), seed)
    assert [len(part) for part in parts] == [count - 2 * (count // 5), count // 5, count // 5]
    assert sorted(number for part in parts for number in of(part)) == list(range(count))
    rarest = int(np.argsort(several.sum(axis=0), kind="stable")[0])
    for part in parts:
        assert part.several is not None
        assert np.array_equal(part.several, several[of(part)])
        assert abs(part.several[:, rarest].sum() - several[:, rarest].sum() * len(part) / count) <= 2


def test_labels_of_several_are_spread_better_than_by_chance() -> None:
    """Of the others than the rarest, which are only nearly in proportion."""
    off: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(40):
        several = np.random.default_rng(seed).random((200, 4)) < [0.1, 0.2, 0.3, 0.5]
        data = replace(numbered([0] * 200), labels=np.array([], np.int64), classes=tuple("abcd"))
        for known in off:
            rows = of(split(replace(data, several=several) if known else data, (40,), seed)[1])
            off[known].append(float(np.abs(several[rows].mean(axis=0) - several.mean(axis=0)).mean()))
    assert np.mean(off[True]) < 0.6 * np.mean(off[False])


def test_a_split_is_repeatable_and_differs_by_seed() -> None:
    data = numbered([0, 1] * 50)
    first, second, other = (split(data, (20,), seed)[1].images for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_split_that_would_leave_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"10 images cannot give 5 \+ 5"):
        split(numbered([0] * 10), (5, 5), 0)


def of(part: ImageSet) -> list[int]:
    numbers: list[int] = part.images.reshape(-1, 2).copy().view(np.uint16).ravel().tolist()
    return numbers


@given(sizes=st.lists(st.integers(1, 12), min_size=8, max_size=40), seed=st.integers(0, 99))
def test_a_group_is_never_on_both_sides(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    held = max(1, len(groups) // 8)
    try:
        rest, one, two = split(numbered([0] * len(groups)), (held, held), seed, groups)
    except TrainingError:  # a few large groups may use everything up
        return
    sides = [set(groups[of(part)]) for part in (rest, one, two)]
    assert sides[0] | sides[1] | sides[2] == set(groups)
    assert sum(map(len, sides)) == len(sizes)
    assert len(rest) + len(one) + len(two) == len(groups)
    assert held <= len(one) < held + max(sizes)


def test_groups_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(TrainingError, match="groups are too large"):
        split(numbered([0] * 10), (1,), 0, np.zeros(10))


def named(*names: str) -> ImageSet:
    return ImageSet(np.zeros((len(names), 1, 1, 1), np.uint8), np.array([], np.int64), (), names)


def test_groups_come_from_a_pattern_or_a_table(tmp_path: Path) -> None:
    data = named("a/part7_1.png", "a/part7_2.png", "b/part12_1.png")
    assert groups_of(data, r"part(\d+)_").tolist() == ["7", "7", "12"]
    table = tmp_path / "groups.csv"
    table.write_text("a/part7_1.png,x\npart7_2.png,y\nb/part12_1.png,x\n")
    assert groups_of(data, str(table)).tolist() == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("part(", "not a regular expression"),
        ("part", "in brackets"),
        (r"piece(\d)", "does not match a.png"),
        ("no.csv", "No such file"),
    ],
)
def test_a_bad_rule_is_named(rule: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        groups_of(named("a.png", "part1.png"), rule)


def test_a_file_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("a.png,1\n")
    with pytest.raises(TrainingError, match=r"no line for b\.png"):
        groups_of(named("a.png", "b.png"), str(tmp_path / "g.csv"))
    with pytest.raises(TrainingError, match="only images from a folder"):
        groups_of(numbered([0, 1]), "(x)")


def folder_of(folder: Path) -> Path:
    for kind in GARMENTS:
        (folder / kind).mkdir(parents=True)
        for side in range(28, 48):
            garment(kind, side).save(folder / kind / f"{side}.png")
    return folder


def test_a_folder_without_a_test_part_keeps_a_share_back_that_training_never_sees(tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path))
    train, test = train_and_test(folder, spec(28, 28), Split(test=0.25), seed=3)
    assert (len(train), len(test)) == (60, 20)
    assert set(train.names).isdisjoint(test.names)
    assert np.bincount(test.labels).tolist() == [5, 5, 5, 5]
    again = train_and_test(folder, spec(28, 28), Split(test=0.25), seed=3)
    assert again[1].names == test.names


def test_a_folder_with_a_test_part_is_taken_as_it_is(tmp_path: Path) -> None:
    folder_of(tmp_path / "train")
    folder_of(tmp_path / "test")
    train, test = train_and_test(str(tmp_path), spec(28, 28), Split(), seed=0)
    assert (len(train), len(test)) == (80, 80)


def test_groups_hold_in_every_split(tmp_path: Path) -> None:
    rules = Split(groups=r"(\d)\.png$", test=0.3)
    train, test = train_and_test(str(folder_of(tmp_path)), spec(28, 28), rules, seed=0)
    parts = [*train_and_held_out(train, rules, seed=0), test]
    endings = [{name[-5] for name in part.names} for part in parts]
    assert sum(map(len, endings)) == len(set().union(*endings)) == 10


def test_small_sets_hold_out_shares() -> None:
    train, validation, calibration = train_and_held_out(numbered([0, 1] * 500), Split(), seed=0)
    assert (len(train), len(validation), len(calibration)) == (700, 100, 200)


def test_groups_hold_copies_and_what_a_rule_joins() -> None:
    names = ("x1.png", "x2.png", "y1.png", "y2.png", "z1.png", "z2.png")
    pixels = np.array([1, 2, 1, 3, 4, 2], np.uint8)[:, None, None, None]
    data = ImageSet(pixels, np.zeros(6, np.int64), ("a", "b"), names)
    alone, joined = (groups_and_copies(data, stated_groups(data, rule)) for rule in (None, r"(\w)\d"))
    assert [alone[0] == alone[2], alone[1] == alone[5], len(set(alone.tolist()))] == [True, True, 4]
    assert len(set(joined.tolist())) == 1, "x and y share an image, x and z another"


def test_with_folds_a_folder_without_parts_is_not_divided(tmp_path: Path) -> None:
    draw_folder(tmp_path / "set", 5, seed=0)
    train, test = train_and_test(str(tmp_path / "set"), spec(8, 8), Split(folds=3), seed=0)
    assert (len(train), len(test)) == (5 * len(GARMENTS), 0)
