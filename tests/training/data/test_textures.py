from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import textures
from training.errors import TrainingError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures, each of one grey and its own: 10, 20, …"""
    for number in range(8):
        (tmp_path / "kind").mkdir(exist_ok=True)
        Image.new("L", (416, 416), 10 * (number + 1)).save(tmp_path / "kind" / f"{number}.jpg", quality=100)
    return tmp_path


def test_an_image_becomes_its_distance_from_a_patch(pictures: Path) -> None:
    black, white = np.zeros((50, 28, 28), np.uint8), np.full((50, 28, 28), 255, np.uint8)
    patches = textures.textured(black, pictures, "train")
    assert patches.shape == black.shape
    assert patches.dtype == np.uint8
    assert np.array_equal(textures.textured(white, pictures, "train"), 255 - patches), "the same patches, seeded"


def test_train_and_test_have_no_picture_in_common(pictures: Path) -> None:
    black = np.zeros((200, 28, 28), np.uint8)
    train, test = (set(np.unique(textures.textured(black, pictures, part))) for part in ("train", "test"))
    assert len(train) == 6
    assert len(test) == 2
    assert not train & test


def test_without_pictures_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere: 0 pictures .* put the NEU surface defect pictures there"):
        textures.textured(np.zeros((1, 28, 28), np.uint8), tmp_path / "nowhere", "train")


def test_a_broken_picture_is_named(pictures: Path) -> None:
    (pictures / "kind" / "0.jpg").write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"kind/0\.jpg: "):
        textures.textured(np.zeros((1, 28, 28), np.uint8), pictures, "test")
