import numpy as np
from support import spec

from training.data.imageset import ImageSet
from training.data.material import Material
from training.measure.review import doubtful_labels, typical, unlabelled, worth_labelling

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
    points[0:60:3], points[1:60:3], points[2:60:3] = [5, 0], [0, 5], [5, 5]
    chosen = worth_labelling(chances, points, 3)
    assert len({tuple(points[index]) for index in chosen}) == 3
    assert all(index < 60 for index in chosen)
    assert len(worth_labelling(chances[:2], points[:2], 5)) == 2
    assert len(worth_labelling(chances[:0], points[:0], 5)) == 0


def test_where_all_candidates_are_copies_as_many_are_chosen_as_were_asked_for() -> None:
    assert len(set(worth_labelling(np.full((50, 2), 0.5), np.ones((50, 4), np.float32), 5))) == 5


def heaps(sizes: tuple[int, ...]) -> np.ndarray:
    """(N, 2) heaps of points, far from each other; the first of each is its middle."""
    rng = np.random.default_rng(1)
    drawn = [np.concatenate([np.zeros((1, 2)), rng.normal(size=(size - 1, 2))]) for size in sizes]
    return np.concatenate([each + np.array([30 * place, 0]) for place, each in enumerate(drawn)]).astype(np.float32)


def test_the_largest_heap_comes_first_and_its_most_typical_image_stands_for_it() -> None:
    points = heaps((40, 80, 60))
    chosen, stands_for = typical(points, np.zeros(180, bool), 3)
    assert stands_for.tolist() == [80, 60, 40]
    middles = points[[40, 120, 0]]
    assert np.linalg.norm(points[chosen] - middles, axis=1).max() < 1, "an image from the edge of a heap"


def test_a_heap_with_a_label_waits_until_the_others_have_one() -> None:
    points, labelled = heaps((40, 80, 60)), np.zeros(180, bool)
    labelled[45] = True
    chosen, _ = typical(points, labelled, 2)
    assert [(30 < points[index][0] + 15 < 60) for index in chosen] == [False, False]
    assert not labelled[chosen].any()


def test_no_more_are_chosen_than_have_no_label() -> None:
    points, labelled = heaps((3, 2)), np.array([True, False, False, True, False])
    chosen, _ = typical(points, labelled, 50)
    assert sorted(chosen.tolist()) == [1, 2, 4]
    copies, _ = typical(np.ones((30, 3), np.float32), np.zeros(30, bool), 10)
    assert len(set(copies.tolist())) == 10
