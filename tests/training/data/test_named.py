from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import spec

from training.data.named import root
from training.data.read import has_parts, read_part
from training.errors import TrainingError


def test_the_textured_set_has_the_labels_of_the_plain_one_and_other_pixels_whatever_the_size(named: Path) -> None:
    surfaces = named.parent / "neu-surface"
    surfaces.mkdir()
    for number in range(4):
        Image.new("L", (40, 40), 60 + 40 * number).save(surfaces / f"{number}.jpg", quality=100)
    assert has_parts("mnist-textured")
    for part, greys in (("train", (100, 140, 180)), ("test", (60,))):
        plain, found = (read_part(name, part, spec(28, 28)) for name in ("mnist", "mnist-textured"))
        assert np.array_equal(found.labels, plain.labels)
        assert found.classes == plain.classes
        for image, pixels in zip(found.images, plain.images, strict=True):
            assert any(np.array_equal(image, np.abs(pixels.astype(int) - grey)) for grey in greys)
    assert read_part("mnist-textured", "test", spec(11, 13, 3)).images.shape == (10, 11, 13, 3)


def test_what_a_textured_set_is_made_of_is_missed_by_name(named: Path) -> None:
    with pytest.raises(TrainingError, match=r"neu-surface: 0 pictures .* or set GRAFT_DATA"):
        read_part("mnist-textured", "train", spec(28, 28))
    with pytest.raises(TrainingError, match="fashion-mnist: its files are not in"):
        read_part("fashion-mnist-textured", "train", spec(28, 28))


def test_the_root_is_a_setting_and_the_users_cache_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFT_DATA", "/somewhere")
    assert root() == Path("/somewhere")
    monkeypatch.setenv("GRAFT_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert root() == tmp_path / "graft" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert root() == Path.home() / ".cache" / "graft" / "data"
