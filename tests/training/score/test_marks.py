"""Distances of networks' marks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import save_tiny, spec

from app.bundle import Bundle, load
from app.bundle.manifest import ANOMALY_MAP, PATCH_DISTANCE, PATCH_FEATURES, Graph, Tensor
from app.bundle.scoring import threshold_at
from app.bundle.session import Session
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.score import marks, patches

RNG = np.random.default_rng(0)


def stated(channels: int, rows: int = 40, columns: int = 50) -> Graph:
    encoder = Graph(
        file="encoder.onnx",
        input=Tensor(name="image", dtype="uint8", shape=(-1, 8, 8, 1)),
        outputs=(Tensor(name=PATCH_FEATURES, dtype="float32", shape=(-1, channels, rows, columns)),),
    )
    return patches.graph_of(encoder)


def test_the_graph_gives_the_networks_mean_above_their_levels_and_of_that_the_largest() -> None:
    graph, levels = stated(3), np.array([-2.0, 0.5, 1.0])
    model = marks.to_onnx(graph, levels, 20)
    session = Session(model, graph, graph.file, threads=1)
    logits = RNG.normal(scale=5, size=(4, 3, 40, 50)).astype(np.float32)
    found = session.run(logits)
    relative = (logits - levels[:, None, None]).mean(axis=1)
    expected = np.log1p(np.exp(relative + marks.RAISED))
    np.testing.assert_allclose(found[ANOMALY_MAP], expected, rtol=1e-4, atol=1e-5)
    highest = np.sort(expected.reshape(4, -1), axis=1)[:, -6:].mean(axis=1)
    np.testing.assert_allclose(found[PATCH_DISTANCE][:, 0], highest, rtol=1e-4)
    assert marks.are_in(model)
    level = patches.Level((3, 40, 50), np.zeros(3), np.eye(3), points=np.ones((4, 3)), reach=np.ones(4))
    assert not marks.are_in(patches.to_onnx((level,), graph, 20))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Its marks are the picture's pixels, in 0…1: the one network that it has."""
    return load(save_tiny(tmp_path, shape=spec(height=4, width=4), patches=True))


def two_networks(bundle: Bundle) -> Bundle:
    """The marks of the second are ten times those of the first."""

    class Encoder:
        def run(self, images: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
            found = bundle.encoder.run(images, wanted)[PATCH_FEATURES]
            return {PATCH_FEATURES: np.concatenate([found, 10 * found], axis=1)}

    return replace(bundle, encoder=Encoder())  # type: ignore[arg-type]


def test_an_image_is_measured_by_the_network_that_has_not_seen_it_relative_to_the_others_of_its_fold(
    bundle: Bundle,
) -> None:
    values = np.array([51, 102, 102, 153, 204, 0], np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (6, 4, 4, 1)).copy()
    folds = np.array([0, 1, 0, 1, 1, 0])
    found = marks.across(two_networks(bundle), ImageSet(images, np.array([], np.int64), ()), folds)
    own = np.array([0.2, 4, 0.4, 6, 8, 0])
    others = np.array([0.2, 7, 0.1, 6, 5, 0.3])
    np.testing.assert_allclose(found.levels, [0.2, 6], rtol=1e-4)
    expected = np.log1p(np.exp(own - others + marks.RAISED))
    np.testing.assert_allclose(found.distances[:, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(found.peaks, np.sort(expected), rtol=1e-4)


def test_a_fold_of_one_image_has_no_level_for_it(bundle: Bundle) -> None:
    data = ImageSet(RNG.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8), np.array([], np.int64), ())
    with pytest.raises(TrainingError, match=r"3 images in 2 folds: marks need two in each: lower anomaly\.folds"):
        marks.across(two_networks(bundle), data, np.array([0, 0, 1]))


class Drawn:
    """Of image number n, in its first two pixels, the marks that are drawn for it: some images are odder than others,
    and every network has a level of its own."""

    def __init__(self, count: int, networks: int, rng: np.random.Generator) -> None:
        oddness, level = rng.normal(size=(count, 1, 1, 1)), rng.normal(scale=5, size=(1, networks, 1, 1))
        self.marks = (oddness + level + rng.normal(size=(count, networks, 4, 4))).astype(np.float32)

    def run(self, images: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
        return {PATCH_FEATURES: self.marks[images[:, 0, 0, 0] + 256 * images[:, 0, 1, 0].astype(int)]}


def test_no_more_new_images_are_above_the_threshold_than_stated(bundle: Bundle) -> None:
    """In the mean over sets of two dozen, by the three networks that the threshold comes from; a fourth, of which no
    image is known that it has not seen, has a level of its own."""
    rng, images = np.random.default_rng(0), np.zeros((24, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(24)
    data, published, fourth = ImageSet(images, np.array([], np.int64), ()), [], []
    for _ in range(150):
        drawn = Drawn(324, 4, rng)
        found = marks.across(replace(bundle, encoder=drawn), data, np.arange(24) % 3)  # type: ignore[arg-type]
        threshold = threshold_at(np.sort(found.distances[:, 0]), 0.05)
        relative = (drawn.marks[24:, :3] - found.levels[:, None, None]).mean(axis=1)
        for shares, each in ((published, relative), (fourth, drawn.marks[24:, 3] - found.levels.mean())):
            scores = np.logaddexp(0, each + marks.RAISED).reshape(300, -1).max(axis=1)
            shares.append(np.mean(scores > threshold))
    assert 0 < np.mean(published) <= 0.05
    assert np.mean(fourth) > 0.2
