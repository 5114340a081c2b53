from pathlib import Path

import numpy as np
import pytest
from support import draw_folder, idx, spec

from training.data.read import has_parts, read_part
from training.errors import TrainingError


def test_idx_files_read_gzipped_or_not(named: Path) -> None:
    train, test = read_part("mnist", "train", spec(28, 28)), read_part("mnist", "test", spec(28, 28))
    assert (train.images.shape, test.images.shape) == ((40, 28, 28, 1), (10, 28, 28, 1))
    assert train.classes == tuple("0123456789")
    assert list(test.labels) == list(range(10))
    assert train.images.flags.writeable


def test_a_folder_of_idx_files_is_found_by_its_path(named: Path) -> None:
    assert len(read_part(str(named), "test", spec(28, 28))) == 10


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path))
    with pytest.raises(TrainingError, match="data mnist --download"):
        read_part("mnist", "train", spec(28, 28))
    with pytest.raises(TrainingError, match="neither a named data set"):
        read_part("emnist", "train", spec(28, 28))


def test_parts_may_have_folders_of_their_own(tmp_path: Path) -> None:
    draw_folder(tmp_path / "train", 4, seed=0)
    draw_folder(tmp_path / "test", 4, seed=1)
    (tmp_path / "test/bag/0.png").unlink()
    assert len(read_part(str(tmp_path), "train", spec(28, 28))) == 16
    assert len(read_part(str(tmp_path), "test", spec(28, 28))) == 15


def test_what_lies_beside_the_parts_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test", "val"):
        draw_folder(tmp_path / part, 4, seed=0)
    for part in ("train", "test"):
        read_part(str(tmp_path), part, spec(28, 28))
    assert capsys.readouterr().err.splitlines() == [f"{tmp_path}: left out entries beside train and test (1): val"]


def test_a_training_part_alone_is_read_for_both(tmp_path: Path) -> None:
    draw_folder(tmp_path / "train", 4, seed=0)
    assert not has_parts(str(tmp_path))
    assert len(read_part(str(tmp_path), "train", spec(28, 28))) == 16
    assert len(read_part(str(tmp_path), "test", spec(28, 28))) == 16


def test_a_test_part_alone_is_not_trained_on(tmp_path: Path) -> None:
    draw_folder(tmp_path / "test", 4, seed=0)
    assert len(read_part(str(tmp_path), "test", spec(28, 28))) == 16
    with pytest.raises(TrainingError, match="a folder test, and no folder train: put the images to train on there"):
        read_part(str(tmp_path), "train", spec(28, 28))


@pytest.mark.parametrize("name", ["train.npz", "t10k-images-idx3-ubyte"])
def test_one_part_of_two_misses_the_other_by_its_name(tmp_path: Path, name: str) -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    if name.endswith("npz"):
        np.savez(tmp_path / name, images=images)
    else:
        (tmp_path / name).write_bytes(idx(images))
    with pytest.raises(TrainingError, match=r"test\.npz|train-images-idx3-ubyte"):
        read_part(str(tmp_path), "test" if name.endswith("npz") else "train", spec(4, 4))
