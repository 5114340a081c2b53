from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import save_tiny, spec

from app.bundle import Bundle, load
from app.bundle.manifest import ANOMALY_MAP, PATCH_DISTANCE, PATCH_FEATURES, Graph, Tensor
from app.bundle.regions import PEAKS
from app.bundle.session import Session
from training.data.imageset import ImageSet
from training.data.storage import Rows
from training.errors import TrainingError
from training.score import patches
from training.score.patches import Memory, Part

RNG = np.random.default_rng(0)
SIDES = 5, 7


def encoder(channels: int) -> Graph:
    return Graph(
        file="encoder.onnx",
        input=Tensor(name="image", dtype="uint8", shape=(-1, 8, 8, 1)),
        outputs=(Tensor(name=PATCH_FEATURES, dtype="float32", shape=(-1, channels, *SIDES)),),
    )


def part(vectors: np.ndarray) -> Part:
    return Part(vectors, len(vectors), vectors.sum(axis=0), vectors.astype(np.float64).T @ vectors)


def test_the_graph_gives_each_place_its_distance_from_the_nearest_that_is_remembered() -> None:
    memory = Memory(
        mean=RNG.normal(size=6).astype(np.float32),
        weight=RNG.normal(size=(6, 6)).astype(np.float32),
        points=RNG.normal(size=(40, 6)).astype(np.float32),
        reach=RNG.uniform(0.5, 2, 40).astype(np.float32),
    )
    stated = patches.graph_of(encoder(6))
    session = Session(patches.to_onnx(memory, stated, 20), stated, stated.file, threads=1)
    maps = RNG.normal(size=(3, 6, *SIDES)).astype(np.float32)
    found = session.run(maps)
    places = maps.transpose(0, 2, 3, 1).reshape(-1, 6)
    apart = ((places - memory.mean) @ memory.weight)[:, None] - memory.points
    expected = (np.sqrt(np.square(apart).sum(axis=2)) / memory.reach).min(axis=1).reshape(3, *SIDES)
    np.testing.assert_allclose(found[ANOMALY_MAP], expected, rtol=1e-4)
    np.testing.assert_allclose(found[PATCH_DISTANCE][:, 0], expected.max(axis=(1, 2)), rtol=1e-4)
    for each, alone in zip(maps, found[ANOMALY_MAP], strict=True):
        np.testing.assert_allclose(session.run(each[None])[ANOMALY_MAP][0], alone, rtol=1e-5)


def test_the_distance_from_a_patch_that_lies_alone_counts_less() -> None:
    """One of two clusters is ten times as wide."""
    wide, narrow = RNG.normal(scale=1, size=(50, 4)) + 20, RNG.normal(scale=0.1, size=(50, 4))
    memory = patches.fit([part(np.concatenate([wide, narrow]).astype(np.float32))], 100, "")
    order = np.argsort(memory.points @ (memory.points[memory.reach.argmax()]))
    assert memory.reach[order[50:]].mean() > 4 * memory.reach[order[:50]].mean()


def test_what_is_remembered_has_no_distance() -> None:
    vectors = RNG.normal(size=(30, 6)).astype(np.float32)
    memory = patches.fit([part(vectors)], 30, "")
    stated = patches.graph_of(encoder(6))
    session = Session(patches.to_onnx(memory, stated, 20), stated, stated.file, threads=1)
    maps = vectors.T[None, :, np.arange(35) % 30].reshape(1, 6, *SIDES)
    assert session.run(np.ascontiguousarray(maps))[ANOMALY_MAP].max() < 0.01


def test_the_rare_is_remembered_before_the_usual_is_remembered_twice() -> None:
    """Of a thousand patches two are far from the others, in many channels as in few."""
    for channels in (4, 200):
        points = RNG.normal(scale=0.1, size=(1000, channels)).astype(np.float32)
        points[[17, 500]] += [[5], [-5]]
        assert {17, 500} <= set(patches.furthest(points, 4, ""))
    few = patches.furthest(points[:3], 10, "")
    assert few.tolist() == [0, 1, 2]
    assert len(patches.furthest(np.ones((100, 4), np.float32), 10, "")) < 10


def test_directions_count_by_how_much_places_differ_in_them_and_one_that_is_nearly_constant_is_not_blown_up() -> None:
    """Two channels rise and fall together; a third is constant but for noise."""
    together = RNG.normal(size=(5000, 1)).astype(np.float32)
    vectors = np.concatenate([together, together, np.zeros_like(together)], axis=1)
    vectors += RNG.normal(scale=[0.3, 0.3, 1e-4], size=vectors.shape).astype(np.float32)
    memory = patches.fit([part(vectors)], 5000, "")
    along, against, aside = (
        np.linalg.norm(np.array(step) @ memory.weight) for step in ([1, 1, 0], [1, -1, 0], [0, 0, 1])
    )
    assert against > 1.5 * along
    assert aside < 10
    with pytest.raises(TrainingError, match="all the same"):
        patches.fit([part(np.ones((10, 3), np.float32))], 5, "")


def test_a_memory_that_would_be_too_large_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"anomaly.patches=5000: 20 MB of 1000 numbers each, 16 MB are allowed"):
        patches.fit([part(np.ones((5000, 1000), np.float32))], 5000, "")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Its map is the picture's pixels."""
    return load(save_tiny(tmp_path, shape=spec(height=4, width=4), patches=True))


def normals(count: int) -> ImageSet:
    return ImageSet(RNG.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8), np.array([], np.int64), ())


@pytest.mark.parametrize("most", [16 * 300, 1000, 7])
def test_candidates_are_drawn_from_images_that_are_never_all_in_memory(bundle: Bundle, most: int) -> None:
    data = normals(300)
    rows = Rows(data.images, np.arange(len(data)))
    found = patches.read_part(bundle, ImageSet(rows, data.labels, ()), "", most)
    assert found.vectors.shape == (most, 1)
    levels = np.sort(np.rint(found.vectors[:, 0] * 255).astype(int))
    if most == 16 * 300:
        assert np.array_equal(levels, np.sort(data.images.ravel()))
    assert np.array_equal(found.vectors, patches.read_part(bundle, data, "", most).vectors)


def test_an_image_is_measured_by_the_folds_that_do_not_hold_it(bundle: Bundle) -> None:
    """The two images of the first fold alone are bright: to each other they would be near."""
    images = np.full((8, 4, 4, 1), 10, np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None]
    images[:2] = 200
    data = ImageSet(images, np.array([], np.int64), ())
    found = patches.across(bundle, data, np.array([0, 0, 1, 1, 2, 2, 3, 3]), count=50, opset=20)
    assert found.distances.shape == (8, 1)
    assert (found.distances[:2] > 20 * found.distances[2:].max()).all()
    bright = (200 / 255 - found.memory.mean) @ found.memory.weight
    assert np.abs(found.memory.points - bright).min() < 1e-3


def test_the_peaks_of_sound_images_set_the_threshold_of_regions(bundle: Bundle) -> None:
    """Also of a bundle whose score is still to be fitted."""
    data = normals(9)
    placed = bundle.place(bundle.measure_patches(bundle.encode(data.images, patches=True))[ANOMALY_MAP])
    for each in (bundle, replace(bundle, scorer=None)):
        found = patches.peaks_of(each, data)
        np.testing.assert_allclose(found[PEAKS], np.sort(placed.max(axis=(1, 2))), rtol=1e-6)
    assert patches.peaks_of(replace(bundle, patches=None), data) == {}
    across = patches.across(bundle, data, np.arange(9) % 3, count=50, opset=20)
    assert (np.diff(across.peaks) >= 0).all()
    assert across.peaks.shape == (9,)
