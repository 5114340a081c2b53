from pathlib import Path

import numpy as np
import pytest

from training.data.storage import Rows, allocate, allowance, chunks, take
from training.errors import TrainingError


def test_what_fits_lies_in_memory_and_what_does_not_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFT_MEMORY_MB", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small, large = allocate((1000, 100), np.uint8), allocate((20_000, 100), np.uint8)
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    large[-1] = 7
    assert large[-1, -1] == 7
    assert list(tmp_path.iterdir()) == [], "the file has no name, so nothing is left behind"


def test_memory_is_what_the_machine_or_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10e6 < allowance() < 1e13
    monkeypatch.setenv("GRAFT_MEMORY_MB", "2.5")
    assert allowance() == 2_500_000
    monkeypatch.setenv("GRAFT_MEMORY_MB", "much")
    with pytest.raises(TrainingError, match="GRAFT_MEMORY_MB=much"):
        allowance()


def test_a_disk_that_is_too_small_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_MEMORY_MB", "1")
    with pytest.raises(TrainingError, match=r"fit neither into memory nor into .*set TMPDIR"):
        allocate((1 << 50,), np.uint8)


def test_parts_of_a_file_are_views_that_answer_like_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_MEMORY_MB", "0")
    array = allocate((50, 3), np.uint8)
    array[:] = np.arange(150).reshape(50, 3)
    rows = np.array([40, 3, 3, 17, 9])
    view, copy = take(array, rows), np.asarray(array)[rows]
    assert isinstance(view, Rows)
    assert view.shape == copy.shape
    for index in (2, slice(1, 4), np.array([4, 0]), slice(None)):
        np.testing.assert_array_equal(view[index], copy[index])
    np.testing.assert_array_equal(np.stack(list(view)), copy)
    again = take(view, np.array([3, 1]))
    assert isinstance(again, Rows)
    assert again.array is array, "a view of a view is a view of the file"
    np.testing.assert_array_equal(again[:], copy[[3, 1]])
    assert not isinstance(take(copy, rows[:1] * 0), Rows)


def test_chunks_are_the_whole_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.storage._CHUNK", 100)
    array = np.arange(210, dtype=np.uint8).reshape(70, 3)
    parts = list(chunks(array))
    assert max(map(len, parts)) == 33
    np.testing.assert_array_equal(np.concatenate(parts), array)
