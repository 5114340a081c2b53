"""An index holds the codes, labels, names and thumbnails of its images, and finds each of them first."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import save_tiny, spec

from app.bundle import Bundle, load
from app.bundle.index import Index
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.score import examples, reference

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 6, 4, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(save_tiny(tmp_path_factory.mktemp("models")))


def indexed(bundle: Bundle, images: ImageSet, thumbnails: bool = False, most: int = 1000) -> Index:
    [file] = examples.index(bundle, images, thumbnails, most).values()
    return Index(reference.arrays_of(file), bundle.manifest.latent_size)


def test_each_image_is_the_nearest_to_itself(bundle: Bundle) -> None:
    names = tuple(f"{number}.png" for number in range(30))
    images = ImageSet(PIXELS, np.arange(30) % 2, ("even", "odd"), names)
    index = indexed(bundle, images)
    rows, distances = index.nearest(bundle.encode(PIXELS)["embedding"])
    np.testing.assert_array_equal(rows[:, 0], np.arange(30))
    assert distances[:, 0].max() < 0.05  # codes are kept in half precision
    example = index.example(7)
    assert (example.label, example.file, example.thumbnail) == ("odd", "7.png", None)


def test_no_more_images_are_kept_than_asked(bundle: Bundle) -> None:
    assert len(indexed(bundle, ImageSet(PIXELS, np.array([]), ()), most=8)) == 8


def test_an_image_has_all_of_its_labels_or_none(bundle: Bundle) -> None:
    several = np.zeros((30, 2), bool)
    several[0], several[1, 1] = True, True
    index = indexed(bundle, ImageSet(PIXELS, np.array([]), ("hat", "scarf"), several=several))
    assert [index.example(row).label for row in range(3)] == ["hat, scarf", "scarf", None]


def test_thumbnails_are_small(tmp_path: Path) -> None:
    large = load(save_tiny(tmp_path, shape=spec(90, 120, 3)))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    example = indexed(large, ImageSet(pixels, np.array([]), ()), thumbnails=True).example(2)
    assert example.thumbnail is not None
    assert Image.open(io.BytesIO(example.thumbnail)).size == (64, 48)


def test_codes_that_half_precision_cannot_hold_are_refused() -> None:
    with pytest.raises(TrainingError, match="embedding is too large for half precision"):
        examples.halved(np.array([1e6]), "embedding")
    with pytest.raises(TrainingError, match="embedding is not finite"):
        examples.projection(np.full((3, 2), np.nan, np.float32), 2, "embedding")
