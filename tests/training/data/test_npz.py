import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import spec

from app.bundle import preprocess
from app.bundle.encode import png
from training.data.npz import read_npz
from training.data.read import has_parts, read_part
from training.errors import TrainingError


def test_npz_files_are_read_by_their_parts(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=[0, 1, 2] * 2, classes=["a", "b", "c"])
    np.savez(tmp_path / "test.npz", images=images[:2, ..., 0])
    assert has_parts(str(tmp_path))
    train, test = read_part(str(tmp_path), "train", spec(9, 7, 3)), read_part(str(tmp_path), "test", spec(9, 7))
    assert np.array_equal(train.images, images)
    assert (train.classes, list(train.labels)) == (("a", "b", "c"), [0, 1, 2] * 2)
    assert (test.images.shape, test.classes) == ((2, 9, 7, 1), ())
    small = read_part(str(tmp_path), "train", spec(5, 5, 1))
    assert np.array_equal(small.images[3], preprocess(png(Image.fromarray(images[3])), spec(5, 5, 1)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "`images` is missing"),
        ({"images": np.zeros((2, 3, 3))}, "`images` is float64"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, "`images` is uint8"),
        ({"images": np.zeros((2, 3, 3, 2), np.uint8)}, "2 channels"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [1]}, "`labels` is"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [-1, 0]}, "`labels` is"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0, 5], "classes": ["a"]}, "label 5 of 1"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": ["a", "b"]}, "`labels` is <U1"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0.5, 1]}, "`labels` is float64"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [np.nan, 1]}, "`labels` is float64"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0, 1], "classes": "ab"}, "label 1 of 0 classes"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0, 1], "classes": ["a", "a"]}, "class a occurs twice"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0, 1], "classes": ["a", "b\n"]}, r"b\\n cannot name"),
        ({"images": np.zeros((2, 0, 3), np.uint8)}, "`images` is uint8"),
    ],
)
def test_a_bad_npz_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(TrainingError, match=message) as refused:
        read_npz(tmp_path / "train.npz", spec(3, 3))
    assert "train.npz" in str(refused.value)


def test_a_npz_of_objects_or_of_text_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npz").write_text("text")
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(TrainingError, match="cannot be read"):
            read_npz(tmp_path / name, spec(3, 3))


def test_a_damaged_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    np.savez_compressed(
        path, images=np.random.default_rng(0).integers(0, 256, (4, 9, 9), np.uint8), labels=[0, 1, 0, 1]
    )
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with contextlib.suppress(TrainingError):
            read_npz(path, spec(9, 9))
        path.write_bytes(whole[:at])
        with pytest.raises(TrainingError, match=r"train\.npz: cannot be read"):
            read_npz(path, spec(9, 9))
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(TrainingError, match=r"train\.npz: cannot be read"):
        read_npz(path, spec(9, 9))
