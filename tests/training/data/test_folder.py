from pathlib import Path

import numpy as np
import pytest
from support import spec

from app.bundle import preprocess
from app.bundle.drawings import GARMENTS, garment
from training.data.folder import read_folder
from training.errors import TrainingError


def folder_of_classes(folder: Path) -> Path:
    for kind in GARMENTS:
        (folder / kind).mkdir(parents=True)
        for side in (28, 40, 100):
            garment(kind, side).save(folder / kind / f"{side}.png")
        garment(kind, 64).convert("RGB").save(folder / kind / "64.JPG", "JPEG")
    return folder


def test_a_folder_per_class_any_size_any_format(tmp_path: Path) -> None:
    data = read_folder(folder_of_classes(tmp_path), spec(28, 28))
    assert data.images.shape == (16, 28, 28, 1)
    assert data.classes == tuple(sorted(GARMENTS))
    assert np.bincount(data.labels).tolist() == [4, 4, 4, 4]
    for row, path in zip(data.images, sorted(p for p in tmp_path.rglob("*.*")), strict=True):
        assert np.array_equal(row, preprocess(path.read_bytes(), spec(28, 28)))


def test_a_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    for side in (28, 40):
        garment("bag", side).save(tmp_path / f"{side}.png")
    data = read_folder(tmp_path, spec(28, 28))
    assert (len(data), data.classes, len(data.labels)) == (2, (), 0)


def test_files_that_cannot_be_read_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of_classes(tmp_path)
    for number in range(20):
        garment("bag", 30 + number).save(tmp_path / f"bag/more-{number}.png")
    (tmp_path / "bag/note.txt").write_text("not an image, by its name")
    (tmp_path / "bag/broken.png").write_bytes(b"text in an image's clothes")
    data = read_folder(tmp_path, spec(28, 28))
    assert len(data) == len(data.labels) == 36
    assert f"left out {tmp_path / 'bag/broken.png'}: not an image" in capsys.readouterr().err


def test_too_many_that_cannot_be_read_end_the_run(tmp_path: Path) -> None:
    folder_of_classes(tmp_path)
    for number in range(3):
        (tmp_path / f"bag/broken-{number}.png").write_bytes(b"text")
    with pytest.raises(TrainingError, match=r"3 of 19 images cannot be read, the first .*broken-0"):
        read_folder(tmp_path, spec(28, 28))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="no images in it"):
        read_folder(tmp_path, spec(28, 28))
