from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import save_tiny, spec

from app.bundle import Bundle, load
from app.bundle.manifest import ANOMALY_MAP, PATCH_DISTANCE, PATCH_FEATURES, Graph, Tensor
from app.bundle.regions import PEAKS
from app.bundle.session import Session
from training.data.imageset import ImageSet
from training.data.storage import Rows
from training.errors import TrainingError
from training.score import patches
from training.score.patches import Level, Memory, Part, Shape

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


def level(shape: Shape, count: int = 40) -> Level:
    channels = shape[0]
    return Level(
        shape,
        mean=RNG.normal(size=channels).astype(np.float32),
        weight=RNG.normal(size=(channels, channels)).astype(np.float32),
        points=RNG.normal(size=(count, channels)).astype(np.float32),
        reach=RNG.uniform(0.5, 2, count).astype(np.float32),
    )


def session_of(memory: Memory) -> Session:
    stated = patches.graph_of(encoder(sum(each.shape[0] for each in memory)))
    return Session(patches.to_onnx(memory, stated, 20), stated, stated.file, threads=1)


def fitted(vectors: np.ndarray, count: int) -> Level:
    (made,) = patches.fit([[part(vectors)]], [(vectors.shape[1], *SIDES)], count, "")
    return made


def distances(level: Level, maps: np.ndarray) -> np.ndarray:
    """(N, C, H, W) → (N, H, W), by the definition."""
    places = np.moveaxis(maps, 1, -1)
    apart = ((places - level.mean) @ level.weight)[..., None, :] - level.points
    return np.asarray((np.sqrt(np.square(apart).sum(axis=-1)) / level.reach).min(axis=-1))


def test_the_graph_gives_each_place_its_distance_from_the_nearest_that_is_remembered() -> None:
    memory = (level((6, *SIDES)),)
    session = session_of(memory)
    maps = RNG.normal(size=(3, 6, *SIDES)).astype(np.float32)
    found = session.run(maps)
    expected = distances(memory[0], maps)
    np.testing.assert_allclose(found[ANOMALY_MAP], expected, rtol=1e-4)
    np.testing.assert_allclose(found[PATCH_DISTANCE][:, 0], expected.max(axis=(1, 2)), rtol=1e-4)
    for each, alone in zip(maps, found[ANOMALY_MAP], strict=True):
        np.testing.assert_allclose(session.run(each[None])[ANOMALY_MAP][0], alone, rtol=1e-5)


def test_the_map_is_the_mean_of_the_levels_each_on_its_own_places() -> None:
    """A coarser map's places are repeated where maps are joined, as the encoder's Patches does."""
    memory = level((4, *SIDES)), level((3, 3, 4))
    fine, coarse = (RNG.normal(size=(2, *each.shape)).astype(np.float32) for each in memory)
    repeated = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=SIDES, mode="nearest").numpy()
    found = session_of(memory).run(np.concatenate([fine, repeated], axis=1))
    coarser = torch.from_numpy(distances(memory[1], coarse)[:, None])
    enlarged = torch.nn.functional.interpolate(coarser, size=SIDES, mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(found[ANOMALY_MAP], (distances(memory[0], fine) + enlarged) / 2, rtol=1e-4)


def test_the_distance_from_a_patch_that_lies_alone_counts_less() -> None:
    """One of two clusters is ten times as wide."""
    wide, narrow = RNG.normal(scale=1, size=(50, 4)) + 20, RNG.normal(scale=0.1, size=(50, 4))
    memory = fitted(np.concatenate([wide, narrow]).astype(np.float32), 100)
    order = np.argsort(memory.points @ (memory.points[memory.reach.argmax()]))
    assert memory.reach[order[50:]].mean() > 4 * memory.reach[order[:50]].mean()


def test_what_is_remembered_has_no_distance() -> None:
    vectors = RNG.normal(size=(30, 6)).astype(np.float32)
    maps = vectors.T[None, :, np.arange(35) % 30].reshape(1, 6, *SIDES)
    assert session_of((fitted(vectors, 30),)).run(np.ascontiguousarray(maps))[ANOMALY_MAP].max() < 0.01


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
    memory = fitted(vectors, 5000)
    along, against, aside = (
        np.linalg.norm(np.array(step) @ memory.weight) for step in ([1, 1, 0], [1, -1, 0], [0, 0, 1])
    )
    assert against > 1.5 * along
    assert aside < 10
    with pytest.raises(TrainingError, match="all the same"):
        fitted(np.ones((10, 3), np.float32), 5)


def test_a_memory_that_would_be_too_large_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"anomaly.patches=5000: 20 MB of 1000 numbers each, 16 MB are allowed"):
        fitted(np.ones((5000, 1000), np.float32), 5000)


SHAPES = [(1, 4, 4)]


def test_candidates_of_coarser_places_are_read_once_each(tmp_path: Path) -> None:
    """Joined maps of the tiny bundle are its pixels; read as a level of 2 × 2, they are those in which cells begin."""
    data = normals(5)
    bundle = load(save_tiny(tmp_path, shape=spec(height=4, width=4), patches=True))
    (found,) = patches.read_parts(bundle, data, [(1, 2, 2)], "")
    levels = np.rint(found.vectors[:, 0] * 255).astype(int)
    assert np.array_equal(levels, data.images[:, ::2, ::2].ravel())


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
    (found,) = patches.read_parts(bundle, ImageSet(rows, data.labels, ()), SHAPES, "", most)
    assert found.vectors.shape == (most, 1)
    levels = np.sort(np.rint(found.vectors[:, 0] * 255).astype(int))
    if most == 16 * 300:
        assert np.array_equal(levels, np.sort(data.images.ravel()))
    assert np.array_equal(found.vectors, patches.read_parts(bundle, data, SHAPES, "", most)[0].vectors)


def test_an_image_is_measured_by_the_folds_that_do_not_hold_it(bundle: Bundle) -> None:
    """The two images of the first fold alone are bright: to each other they would be near."""
    images = np.full((8, 4, 4, 1), 10, np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None]
    images[:2] = 200
    data = ImageSet(images, np.array([], np.int64), ())
    found = patches.across(bundle, data, SHAPES, np.array([0, 0, 1, 1, 2, 2, 3, 3]), count=50, opset=20)
    assert found.distances.shape == (8, 1)
    assert (found.distances[:2] > 20 * found.distances[2:].max()).all()
    (remembered,) = found.memory
    bright = (200 / 255 - remembered.mean) @ remembered.weight
    assert np.abs(remembered.points - bright).min() < 1e-3


def test_the_peaks_of_sound_images_set_the_threshold_of_regions(bundle: Bundle) -> None:
    """Also of a bundle whose score is still to be fitted."""
    data = normals(9)
    placed = bundle.place(bundle.measure_patches(bundle.encode(data.images, patches=True))[ANOMALY_MAP])
    for each in (bundle, replace(bundle, scorer=None)):
        found = patches.peaks_of(each, data)
        np.testing.assert_allclose(found[PEAKS], np.sort(placed.max(axis=(1, 2))), rtol=1e-6)
    assert patches.peaks_of(replace(bundle, patches=None), data) == {}
    across = patches.across(bundle, data, SHAPES, np.arange(9) % 3, count=50, opset=20)
    assert (np.diff(across.peaks) >= 0).all()
    assert across.peaks.shape == (9,)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 2, 2)])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_refitted_memory_has_the_levels_that_it_had(bundle: Bundle, shape: Shape, earlier: bool) -> None:
    """Earlier graphs have one memory, of all channels on the joined maps' places, and its name has no number."""
    stated = patches.graph_of(bundle.manifest.graphs.encoder)
    model = onnx.load_from_string(patches.to_onnx((level(shape, count=7),), stated, 20))
    if earlier:
        (memory,) = (each for each in model.graph.initializer if each.name == "memory0")
        memory.name = "memory"
    refitted = onnx.load_from_string(patches.refitted(bundle, normals(20), model.SerializeToString(), 20))
    sizes = {each.name: list(each.dims) for each in refitted.graph.initializer}
    places = {each.name: onnx.numpy_helper.to_array(each).tolist() for each in refitted.graph.initializer}["grid0"]
    assert sizes["memory0"] == [3, 7]
    assert places == [0, *((4, 4) if earlier else shape[1:])]
    del model.graph.initializer[:]
    with pytest.raises(TrainingError, match=r"patches\.onnx was not made by Graft"):
        patches.refitted(bundle, normals(20), model.SerializeToString(), 20)


def test_an_extended_memory_knows_more_images_and_forgets_none(bundle: Bundle) -> None:
    stated = patches.graph_of(bundle.manifest.graphs.encoder)
    dark, bright = (
        ImageSet(RNG.integers(low, low + 20, (30, 4, 4, 1), dtype=np.uint8), np.array([], np.int64), ())
        for low in (10, 200)
    )
    memory = patches.fit([patches.read_parts(bundle, dark, SHAPES, "")], SHAPES, 20, "")
    before = patches.to_onnx(memory, stated, 20)
    after = patches.extended(bundle, bright, before, 20)
    found = {}
    for name, model in (("before", before), ("after", after)):
        session = Session(model, stated, stated.file, threads=1)
        for of, images in (("dark", dark), ("bright", bright)):
            maps = bundle.encode(images.images, patches=True)[PATCH_FEATURES]
            found[name, of] = session.run(maps)[PATCH_DISTANCE][:, 0]
    assert (found["after", "bright"] < 0.1 * found["before", "bright"]).all()
    assert (found["after", "dark"] <= found["before", "dark"] + 1e-3).all()
    [grown] = [each.dims[1] for each in onnx.load_from_string(after).graph.initializer if each.name == "memory0"]
    assert grown == len(memory[0].points) * 5 // 4
