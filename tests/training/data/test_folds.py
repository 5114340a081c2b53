import numpy as np
import pytest

from training.data.folds import folds_of, labelled_folds, prefixes
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.recipe import Split


def named(*names: str) -> ImageSet:
    return ImageSet(np.zeros((len(names), 2, 2, 1), np.uint8), np.array([], np.int64), (), names)


PARTS = tuple(f"good/kos{item:02}_Part{part}.jpg" for item in range(1, 8) for part in (1, 3, 5))


def test_pictures_of_one_item_lie_in_one_fold_and_folds_are_alike_in_size() -> None:
    folds, how = folds_of(named(*PARTS), 5, Split(), seed=0)
    items = [name[5:10] for name in PARTS]
    assert all(len({fold for fold, item in zip(folds, items, strict=True) if item == each}) == 1 for each in items)
    assert sorted(np.bincount(folds)) == [3, 3, 3, 6, 6]
    assert how == "grouped by the beginning of their names, as kos01 of good/kos01_Part1.jpg: 7 groups"


@pytest.mark.parametrize(
    "names",
    [
        [f"img_{number:04}.png" for number in range(40)],  # one beginning
        [f"{number:04}.png" for number in range(40)],
        [f"{kind}_{number}.png" for kind in "abc" for number in range(10)],  # too few for five folds
        [f"{number}_x.png" for number in range(40)],  # each has its own
        [],
    ],
)
def test_names_that_group_nothing_leave_each_image_to_itself(names: list[str]) -> None:
    assert prefixes(tuple(names), 5) is None
    folds, how = folds_of(ImageSet(np.zeros((23, 1, 1, 1)), np.array([]), ()), 5, Split(), seed=0)
    assert sorted(np.bincount(folds)) == [4, 4, 5, 5, 5]
    assert how == "each image by itself"


def test_the_coarsest_beginning_that_makes_enough_groups_counts() -> None:
    """Two cameras see each item: its pictures stay together."""
    names = [f"lot1-item{item}-cam{camera}-{shot}.png" for item in range(6) for camera in (1, 2) for shot in range(3)]
    found = prefixes(tuple(names), 5)
    assert found is not None
    assert len(np.unique(found)) == 6


def test_groups_of_the_recipe_come_first_and_too_few_are_refused() -> None:
    folds, how = folds_of(named(*PARTS), 3, Split(groups=r"Part(\d)"), seed=0)
    parts = [name[-5] for name in PARTS]
    assert len({(fold, part) for fold, part in zip(folds, parts, strict=True)}) == 3
    assert "split.groups" in how
    with pytest.raises(TrainingError, match=r"3 groups cannot make 5 folds"):
        folds_of(named(*PARTS), 5, Split(groups=r"Part(\d)"), seed=0)
    with pytest.raises(TrainingError, match=r"4 images cannot make 5 folds"):
        folds_of(named("a.png", "b.png", "c.png", "d.png"), 5, Split(), seed=0)


def labelled(labels: list[int], names: tuple[str, ...] = (), groups: tuple[str, ...] = ()) -> ImageSet:
    images = np.arange(len(labels), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)
    return ImageSet(images, np.array(labels, np.int64), ("a", "b"), names, groups=groups)


def test_labelled_folds_share_every_class_out_and_each_deal_is_another() -> None:
    data = labelled([0] * 30 + [1] * 11)
    folds = labelled_folds(data, Split(folds=5, repeats=3), seed=0)
    assert folds.numbers.shape == (3, 41)
    for numbers in folds.numbers:
        assert np.bincount(numbers[:30]).tolist() == [6] * 5
        assert sorted(np.bincount(numbers[30:])) == [2, 2, 2, 2, 3]
    assert not np.array_equal(folds.numbers[0], folds.numbers[1])
    assert sum(held.sum() for _, held in folds) == 3 * 41


def test_copies_and_groups_lie_in_one_labelled_fold() -> None:
    data = labelled([0] * 12 + [1] * 12, groups=tuple(f"g{n // 2}" for n in range(24)))
    data.images[5] = data.images[0]
    numbers = labelled_folds(data, Split(folds=3), seed=1).numbers[0]
    assert all(numbers[n] == numbers[n + 1] for n in range(0, 24, 2))
    assert numbers[5] == numbers[0]


def test_a_name_that_begins_with_its_class_is_no_group() -> None:
    names = tuple(f"{kind}_{n}.png" for kind in ("scratch", "dent") for n in range(12))
    folds = labelled_folds(labelled([0] * 12 + [1] * 12, names), Split(folds=2), seed=0)
    assert folds.how == "each image by itself"
    items = tuple(f"{kind}_{n // 3}_{n}.png" for kind in ("scratch", "dent") for n in range(12))
    folds = labelled_folds(labelled([0] * 12 + [1] * 12, items), Split(folds=3), seed=0)
    assert "grouped by the beginning of their names" in folds.how
    assert all(len(set(folds.numbers[0][n : n + 3])) == 1 for n in range(0, 24, 3))


def with_several(several: np.ndarray, groups: tuple[str, ...] = ()) -> ImageSet:
    images = np.arange(len(several), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)
    classes = tuple("abcdef"[: several.shape[1]])
    return ImageSet(images, np.array([], np.int64), classes, groups=groups, several=several)


@pytest.mark.parametrize("seed", range(5))
def test_each_of_several_labels_is_shared_out_evenly(seed: int) -> None:
    several = np.random.default_rng(seed).random((200, 5)) < (0.5, 0.3, 0.1, 0.05, 0.03)
    several[:20] |= np.repeat(np.eye(5, dtype=bool), 4, axis=0)  # none is rarer than folds can bear
    several[20:22, 3:] = True
    folds = labelled_folds(with_several(several), Split(folds=5, repeats=2), seed=seed)
    for numbers in folds.numbers:
        counts = np.array([several[numbers == fold].sum(axis=0) for fold in range(5)])
        assert (np.ptp(counts, axis=0) <= 4).all()
        assert np.ptp(np.bincount(numbers)) <= 6
        nothing = ~several.any(axis=1)
        assert np.ptp(np.bincount(numbers[nothing], minlength=5)) <= 2
    assert not np.array_equal(folds.numbers[0], folds.numbers[1])
    again = labelled_folds(with_several(several), Split(folds=5, repeats=2), seed=seed)
    assert np.array_equal(folds.numbers, again.numbers)


def test_groups_of_images_of_several_labels_lie_in_one_fold() -> None:
    several = np.random.default_rng(0).random((60, 3)) < 0.4
    groups = tuple(f"g{number // 3}" for number in range(60))
    numbers = labelled_folds(with_several(several, groups), Split(folds=4), seed=0).numbers[0]
    assert all(len(set(numbers[start : start + 3])) == 1 for start in range(0, 60, 3))
    counts = np.array([several[numbers == fold].sum(axis=0) for fold in range(4)])
    assert (np.ptp(counts, axis=0) <= 5).all()


def test_a_label_of_fewer_images_than_folds_is_named() -> None:
    several = np.zeros((20, 2), bool)
    several[:10, 0], several[8:11, 1] = True, True
    with pytest.raises(TrainingError, match=r"b has 3 different images for split\.folds=4: lower it, or add images"):
        labelled_folds(with_several(several), Split(folds=4), seed=0)
