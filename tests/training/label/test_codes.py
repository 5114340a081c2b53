"""Codes are kept by what is in a file; copies are known."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import save_tiny, spec, tiny

from app.bundle import Bundle, load
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.bundle.manifest import Weights
from app.bundle.store import save
from training.errors import TrainingError
from training.label.codes import Codes, codes_of, copies, encoder
from training.label.pool import read_pool


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos").mkdir()
    for number, kind in enumerate(sorted(GARMENTS)):
        for side in (26, 32, 38):
            (tmp_path / f"photos/{number}-{side}.png").write_bytes(png(garment(kind, side)))
    save_tiny(tmp_path / "models", "base", shape=spec(28, 28))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bundle(here: Path) -> Bundle:
    return load(here / "models/base/1")


def coded(bundle: Bundle, data: str = "photos") -> Codes:
    return codes_of(bundle, read_pool(data, Path("out")), Path("out"))


def test_an_image_is_encoded_once_wherever_it_is_moved(bundle: Bundle) -> None:
    before = coded(bundle)
    kept = next(Path("out").glob("codes-*.npz"))
    written = kept.stat().st_mtime_ns
    Path("sorted/a").mkdir(parents=True)
    Path("sorted/b").mkdir()
    for number, path in enumerate(sorted(Path("photos").iterdir())):
        shutil.move(path, f"sorted/{'ab'[number % 2]}/{path.name}")
    after = coded(bundle, "sorted")
    assert kept.stat().st_mtime_ns == written, "nothing was encoded again"
    assert after.pool.labels.count("a") == (len(after.pool) + 1) // 2
    by_name = dict(zip(before.pool.names, before.codes, strict=True))
    for name, code in zip(after.pool.names, after.codes, strict=True):
        assert (code == by_name[Path(name).name]).all()


def test_a_file_that_changes_is_encoded_again_though_its_size_and_time_stay(bundle: Bundle) -> None:
    path = sorted(Path("photos").iterdir())[0]
    before, facts = coded(bundle), path.stat()
    pixels = np.array(garment(sorted(GARMENTS)[-1], 36))
    path.write_bytes(png_of_size(pixels, facts.st_size))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    after = coded(bundle)
    assert (before.codes[0] != after.codes[0]).any()
    assert (before.codes[1:] == after.codes[1:]).all()


def png_of_size(pixels: np.ndarray, size: int) -> bytes:
    """With bytes behind its end, which decoders leave."""
    from PIL import Image

    small = png(Image.fromarray(pixels).resize((8, 8)))
    return small + bytes(size - len(small))


def test_a_broken_file_of_codes_costs_time_alone(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    before = coded(bundle)
    kept = next(Path("out").glob("codes-*.npz"))
    kept.write_bytes(kept.read_bytes()[:-200])
    capsys.readouterr()
    assert (coded(bundle).codes == before.codes).all()
    assert "the images are encoded again" in capsys.readouterr().err


def test_an_image_that_is_broken_is_named_and_left_out(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    for copy in range(30):
        shutil.copy("photos/0-26.png", f"photos/copy-{copy}.png")
    Path("photos/broken.png").write_text("no image")
    for _ in range(2):  # now, and from what is kept
        found = coded(bundle)
        assert "broken.png" not in found.pool.names
        assert "left out unreadable images" in capsys.readouterr().err
    for number in range(9):
        Path(f"photos/broken-{number}.png").write_text("no image")
    with pytest.raises(TrainingError, match=r"photos: 10 of \d+ images cannot be read: broken-0.png"):
        coded(bundle)


def test_copies_are_one_group_and_other_pictures_are_none(bundle: Bundle) -> None:
    """To the pixel, and a picture that was saved brighter by two grey levels."""
    from PIL import Image

    first = sorted(Path("photos").iterdir())[0]
    shutil.copy(first, "photos/z-copy.png")
    with Image.open(first) as image:
        image.convert("L").point([min(255, level + 2) for level in range(256)]).save("photos/z-brighter.png")
    found = coded(bundle)
    group = copies(found)
    by_name = dict(zip(found.pool.names, group.tolist(), strict=True))
    assert by_name[first.name] == by_name["z-copy.png"] == by_name["z-brighter.png"]
    assert len(set(group.tolist())) == len(found.pool) - 2


def test_a_film_is_not_one_picture(bundle: Bundle) -> None:
    """Each frame is a copy of the one before, and not of the first."""
    from PIL import Image

    shutil.rmtree("photos")
    Path("photos").mkdir()
    for frame in range(12):
        Image.new("L", (28, 28), 60 + 3 * frame).save(f"photos/{frame:02}.png")
    assert len(set(copies(coded(bundle)).tolist())) == 6


def test_without_outside_weights_a_bundle_is_needed_that_has_none(here: Path) -> None:
    assert encoder(here / "models/base/1", False, here / "out").name == "base"
    with pytest.raises(TrainingError, match="--no-outside-weights needs --base models/NAME/VERSION"):
        encoder(None, False, here / "out")
    fields, files = tiny(shape=spec(28, 28))
    weights = Weights(backbone="resnet18", file="resnet18.pth", sha256="0" * 64, publisher=None, licence=None)
    fields["provenance"] = fields["provenance"].model_copy(update={"weights": weights})
    save(here / "models", "other", fields, files)
    assert encoder(here / "models/other/1", True, here / "out").name == "other"
    with pytest.raises(TrainingError, match="models/other/1: began with weights that others published"):
        encoder(here / "models/other/1", False, here / "out")
    with pytest.raises(TrainingError, match="2 bundles: name one, as in models/NAME/1"):
        encoder(here / "models", False, here / "out")
