import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import idx, spec

from app.bundle import preprocess
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from training.data.imageset import ImageSet, has_parts, load, read_folder, read_idx, read_npz, root
from training.errors import TrainingError


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small mnist under GRAFT_DATA, the training part gzipped."""
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path))
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            if stem == "train":
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def test_idx_files_read_gzipped_or_not(named: Path) -> None:
    train, test = load("mnist", "train", spec(28, 28)), load("mnist", "test", spec(28, 28))
    assert (train.images.shape, test.images.shape) == ((40, 28, 28, 1), (10, 28, 28, 1))
    assert train.classes == tuple("0123456789")
    assert list(test.labels) == list(range(10))
    assert train.images.flags.writeable


def test_another_size_goes_through_the_servings_preprocessing(named: Path) -> None:
    shape = spec(11, 13, 3)
    small, whole = load("mnist", "train", shape), load("mnist", "train", spec(28, 28))
    for made, pixels in zip(small.images[:5], whole.images[:5], strict=True):
        assert np.array_equal(made, preprocess(png(Image.fromarray(pixels[..., 0])), shape))


def test_a_folder_of_idx_files_is_found_by_its_path(named: Path) -> None:
    assert len(load(str(named), "test", spec(28, 28))) == 10


def test_the_textured_set_has_the_labels_of_the_plain_one_and_other_pixels_whatever_the_size(named: Path) -> None:
    surfaces = named.parent / "neu-surface"
    surfaces.mkdir()
    for number in range(4):
        Image.new("L", (40, 40), 60 + 40 * number).save(surfaces / f"{number}.jpg", quality=100)
    assert has_parts("mnist-textured")
    for part, greys in (("train", (100, 140, 180)), ("test", (60,))):
        plain, found = (load(name, part, spec(28, 28)) for name in ("mnist", "mnist-textured"))
        assert np.array_equal(found.labels, plain.labels)
        assert found.classes == plain.classes
        for image, pixels in zip(found.images, plain.images, strict=True):
            assert any(np.array_equal(image, np.abs(pixels.astype(int) - grey)) for grey in greys)
    assert load("mnist-textured", "test", spec(11, 13, 3)).images.shape == (10, 11, 13, 3)


def test_what_a_textured_set_is_made_of_is_missed_by_name(named: Path) -> None:
    with pytest.raises(TrainingError, match=r"neu-surface: 0 pictures .* or set GRAFT_DATA"):
        load("mnist-textured", "train", spec(28, 28))
    with pytest.raises(TrainingError, match="fashion-mnist: its files are not in"):
        load("fashion-mnist-textured", "train", spec(28, 28))


@pytest.mark.parametrize(
    ("content", "says"),
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
def test_a_bad_idx_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=says) as refused:
        read_idx(path)
    assert str(path) in str(refused.value)


def test_labels_that_do_not_match_are_refused(named: Path) -> None:
    (named / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(TrainingError, match="not as many labels as images"):
        load("mnist", "test", spec(28, 28))
    (named / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(10, 77, np.uint8)))
    with pytest.raises(TrainingError, match="label 77 of 10 classes"):
        load("mnist", "test", spec(28, 28))


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path))
    with pytest.raises(TrainingError, match="data mnist --download"):
        load("mnist", "train", spec(28, 28))
    with pytest.raises(TrainingError, match="neither a data set of ours"):
        load("emnist", "train", spec(28, 28))


def test_the_root_is_a_setting_and_the_users_cache_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFT_DATA", "/somewhere")
    assert root() == Path("/somewhere")
    monkeypatch.setenv("GRAFT_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert root() == tmp_path / "graft" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert root() == Path.home() / ".cache" / "graft" / "data"


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


def test_parts_may_have_folders_of_their_own(tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "train")
    folder_of_classes(tmp_path / "test")
    (tmp_path / "test/bag/28.png").unlink()
    assert len(load(str(tmp_path), "train", spec(28, 28))) == 16
    assert len(load(str(tmp_path), "test", spec(28, 28))) == 15


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


def numbered(labels: list[int]) -> ImageSet:
    images = np.arange(len(labels), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)
    return ImageSet(images, np.array(labels, np.int64), tuple("abc"))


def test_the_fingerprint_is_of_images_and_labels() -> None:
    one, two = numbered([0, 1]), numbered([1, 0])
    assert one.fingerprint() == numbered([0, 1]).fingerprint() != two.fingerprint()


def test_npz_files_are_read_by_their_parts(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=[0, 1, 2] * 2, classes=["a", "b", "c"])
    np.savez(tmp_path / "test.npz", images=images[:2, ..., 0])
    assert has_parts(str(tmp_path))
    train, test = load(str(tmp_path), "train", spec(9, 7, 3)), load(str(tmp_path), "test", spec(9, 7))
    assert np.array_equal(train.images, images)
    assert (train.classes, list(train.labels)) == (("a", "b", "c"), [0, 1, 2] * 2)
    assert (test.images.shape, test.classes) == ((2, 9, 7, 1), ())
    small = load(str(tmp_path), "train", spec(5, 5, 1))
    assert np.array_equal(small.images[3], preprocess(png(Image.fromarray(images[3])), spec(5, 5, 1)))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "`images` is missing"),
        ({"images": np.zeros((2, 3, 3))}, "`images` is float64"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, "`images` is uint8"),
        ({"images": np.zeros((2, 3, 3, 2), np.uint8)}, "2 channels"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [1]}, "`labels` is"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [-1, 0]}, "`labels` is"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0, 5], "classes": ["a"]}, "label 5 of 1"),
    ],
)
def test_a_bad_npz_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(TrainingError, match=says) as refused:
        read_npz(tmp_path / "train.npz", spec(3, 3))
    assert "train.npz" in str(refused.value)


def test_a_npz_of_objects_or_of_text_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npz").write_text("text")
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(TrainingError, match="cannot be read"):
            read_npz(tmp_path / name, spec(3, 3))
