import gzip
from pathlib import Path

import numpy as np
import pytest
from support import idx, spec

from training.data.idx import read_idx
from training.data.read import read_part
from training.errors import TrainingError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x0d\x01" + b"\x00" * 8, "not an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "its header says"),
        (idx(np.zeros((3, 2, 2), np.uint8))[:-1], "download it again"),
        (idx(np.zeros((3, 2, 2), np.uint8)) + b"x", "download it again"),
        (gzip.compress(b"\x00\x00\x08\x01", mtime=0)[:-5], "cannot be read"),
        (b"\x1f\x8bnot gzip after all", "cannot be read"),
    ],
)
def test_a_bad_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=message) as refused:
        read_idx(path)
    assert str(path) in str(refused.value)


def test_labels_that_do_not_match_are_refused(named: Path) -> None:
    (named / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(TrainingError, match="not as many labels as images"):
        read_part("mnist", "test", spec(28, 28))
    (named / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(10, 77, np.uint8)))
    with pytest.raises(TrainingError, match="label 77 of 10 classes"):
        read_part("mnist", "test", spec(28, 28))
