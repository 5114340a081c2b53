from pathlib import Path

import pytest
from support import draw_folder, spec

from training.data.read import read_part
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
    with pytest.raises(TrainingError, match="neither a data set of ours"):
        read_part("emnist", "train", spec(28, 28))


def test_parts_may_have_folders_of_their_own(tmp_path: Path) -> None:
    draw_folder(tmp_path / "train", 4, seed=0)
    draw_folder(tmp_path / "test", 4, seed=1)
    (tmp_path / "test/bag/0.png").unlink()
    assert len(read_part(str(tmp_path), "train", spec(28, 28))) == 16
    assert len(read_part(str(tmp_path), "test", spec(28, 28))) == 15
