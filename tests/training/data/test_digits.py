import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from training.data import digits
from training.data.read import has_parts, read_part
from training.errors import TrainingError
from training.recipe import Input


def put(folder: Path, lines: list[list[int]]) -> None:
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "digits.csv.gz", "wt") as file:
        file.writelines(",".join(map(str, line)) + "\n" for line in lines)


def test_values_become_greys_and_sizes_those_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "digits", [[0] * 64 + [3], [16] * 32 + [8] * 32 + [7]])
    pixels, labels = digits.read(tmp_path / "digits")
    assert pixels.shape == (2, 8, 8)
    assert pixels[0].max() == 0
    assert (pixels[1, 0, 0], pixels[1, 7, 7]) == (255, 128)
    assert labels.tolist() == [3, 7]

    monkeypatch.setenv("GRAFT_DATA", str(tmp_path))
    found = read_part("digits", "train", Input().spec())
    assert found.images.shape == (2, 28, 28, 1)
    assert found.classes == tuple("0123456789")
    assert not has_parts("digits")


@pytest.mark.parametrize("line", [[0] * 64, [17] * 64 + [1], [0] * 64 + [10], [-1] * 64 + [1]])
def test_other_lines_are_refused(line: list[int], tmp_path: Path) -> None:
    put(tmp_path, [line])
    with pytest.raises(TrainingError, match="values of 0 to 16 and a digit are expected"):
        digits.read(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "digits.csv.gz").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"digits\.csv\.gz: cannot be read"):
        digits.read(tmp_path)


def test_without_scikit_learn_it_says_what_to_install(tmp_path: Path) -> None:
    if importlib.util.find_spec("sklearn") is not None:
        pixels, labels = digits.read(tmp_path)
        assert pixels.shape == (1797, 8, 8)
        assert np.bincount(labels).min() > 170
        return
    with pytest.raises(TrainingError, match="pip install scikit-learn"):
        digits.read(tmp_path)
