import numpy as np
from support import spec

from training.data.imageset import ImageSet
from training.data.material import Material
from training.measure.review import doubtful_labels, unlabelled, worth_labelling

RNG = np.random.default_rng(0)


def test_labels_that_were_exchanged_are_found() -> None:
    truth = RNG.integers(0, 5, 1500)
    points = (RNG.normal(size=(5, 30))[truth] * 1.5 + RNG.normal(size=(1500, 30))).astype(np.float32)
    wrong = RNG.choice(1500, 40, replace=False)
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + RNG.integers(1, 5, 40)) % 5
    found = doubtful_labels(points, labels, 5, 40)
    hits = [doubt for doubt in found if doubt.index in set(wrong.tolist())]
    assert len(hits) >= 36
    assert all(doubt.suggested == truth[doubt.index] and doubt.given == labels[doubt.index] for doubt in hits)
    assert [doubt.margin for doubt in found] == sorted((doubt.margin for doubt in found), reverse=True)


def test_a_label_is_judged_by_a_fit_without_it() -> None:
    """An image far out, whose label only it supports."""
    points = np.concatenate([RNG.normal(size=(60, 2)), [[25.0, 25.0]]]).astype(np.float32)
    labels = np.concatenate([(points[:60, 0] > 0).astype(np.int64), [0]])
    [first, *_] = doubtful_labels(points, labels, 2, 5)
    assert (first.index, first.suggested) == (60, 1)


def test_copies_with_the_same_wrong_label_do_not_vouch_for_each_other() -> None:
    points, labels = RNG.normal(size=(200, 4)).astype(np.float32), np.zeros(200, np.int64)
    labels[points[:, 0] > 0] = 1
    points[:8], labels[:8] = (
        [40, 0, 40, 0],
        0,
    )  # copies, far out on the side of class 1
    group = np.arange(200)
    group[:8] = 0
    found = doubtful_labels(points, labels, 2, 8, group)
    assert sorted(doubt.index for doubt in found) == list(range(8))


def test_a_class_that_no_other_fold_has_is_not_doubted() -> None:
    points, labels = RNG.normal(size=(100, 3)).astype(np.float32), np.arange(100) % 2
    labels[:6] = 2
    group = np.arange(100)
    group[:6] = 0
    assert not any(doubt.given == 2 for doubt in doubtful_labels(points, labels, 3, 100, group))


def images_of(levels: list[int], labels: list[int] | None, names: tuple[str, ...] = ()) -> ImageSet:
    pixels = np.array(levels, np.uint8)[:, None, None, None]
    return ImageSet(pixels, np.array([] if labels is None else labels, np.int64), ("a", "b"), names)


def material(source: ImageSet, target: ImageSet) -> Material:
    return Material(
        spec=spec(1, 1),
        source=source,
        source_train=source,
        source_validation=source,
        source_test=source,
        target=target,
        train=target,
        validation=target,
        calibration=target,
        test=target,
    )


def test_only_images_without_a_label_are_worth_one() -> None:
    labelled, bare = images_of([1, 2, 3], [0, 1, 1]), images_of([3, 4, 5, 1], None)
    assert unlabelled(material(labelled, labelled)) is None
    pool = unlabelled(material(bare, labelled))
    assert pool is not None
    assert pool.images[:].ravel().tolist() == [4, 5], "the others have one in the target"
    assert unlabelled(material(images_of([1, 3], None), labelled)) is None
    adapted = unlabelled(material(labelled, bare))
    assert adapted is not None
    assert len(adapted) == 4


def test_clean_labels_are_left_alone() -> None:
    truth = np.arange(300) % 3
    points = (np.eye(3)[truth] * 20 + RNG.normal(size=(300, 3))).astype(np.float32)
    assert doubtful_labels(points, truth, 3, 10) == []


def test_the_uncertain_come_first_and_no_two_alike() -> None:
    chances = np.full((100, 2), [0.99, 0.01])
    points = np.zeros((100, 2), np.float32)
    chances[:60] = 0.5
    points[:20], points[20:40], points[40:60] = [5, 0], [0, 5], [5, 5]
    chosen = worth_labelling(chances, points, 3)
    assert len({tuple(points[index]) for index in chosen}) == 3
    assert all(index < 60 for index in chosen)
    assert len(worth_labelling(chances[:2], points[:2], 5)) == 2
    assert len(worth_labelling(chances[:0], points[:0], 5)) == 0
