import os
from pathlib import Path

import numpy as np
import pytest
from support import draw_folder, draw_inspection, spec

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
    output = capsys.readouterr().err
    assert f"{tmp_path}: left out unreadable images (1 of 37): bag/broken.png (not an image" in output
    assert f"{tmp_path}: left out other files (1): bag/note.txt" in output


def test_too_many_that_cannot_be_read_end_the_run(tmp_path: Path) -> None:
    folder_of_classes(tmp_path)
    for number in range(3):
        (tmp_path / f"bag/broken-{number}.png").write_bytes(b"text")
    with pytest.raises(TrainingError, match=r"3 of 19 images cannot be read: bag/broken-0\.png \(not an image"):
        read_folder(tmp_path, spec(28, 28))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="no images in it"):
        read_folder(tmp_path, spec(28, 28))


def test_what_else_lies_in_a_folder_is_named_by_its_kind_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_classes(tmp_path)
    image = tmp_path / "bag/28.png"
    for copy in (".ipynb_checkpoints/a.png", "bag/.ipynb_checkpoints/b.png", "bag/ground_truth/c.png", "loose.png"):
        (tmp_path / copy).parent.mkdir(exist_ok=True)
        (tmp_path / copy).write_bytes(image.read_bytes())
    for name in ("Thumbs.db", "bag/Thumbs.db", "bag/notes.txt", "._bag"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "round").symlink_to(".")
    (tmp_path / "bag/up").symlink_to("..")
    (tmp_path / "bag/gone.png").symlink_to("nowhere.png")
    (tmp_path / "bag/itself.png").symlink_to("itself.png")
    (tmp_path / "bag/a folder.png").mkdir()
    os.mkfifo(tmp_path / "bag/pipe.png")
    data = read_folder(tmp_path, spec(28, 28))
    assert (len(data), data.classes) == (16, tuple(sorted(GARMENTS)))
    assert capsys.readouterr().err.replace(f"{tmp_path}: ", "").splitlines() == [
        "left out hidden entries (3): ._bag, .ipynb_checkpoints, bag/.ipynb_checkpoints",
        "left out other files (3): Thumbs.db, bag/Thumbs.db, bag/notes.txt",
        "left out broken links and special files (3): bag/gone.png, bag/itself.png, bag/pipe.png",
        "left out folders of masks inside class folders (1): bag/ground_truth",
        "left out links back to a parent folder (2): bag/up, round",
        "left out folders without images (1): nothing",
        "left out images beside class folders (1): loose.png",
    ]


def test_images_in_folders_inside_a_class_folder_have_its_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_classes(tmp_path)
    for number, inner in enumerate(("bag/left", "bag/left/far", "bag/.hidden", "deep/only/here")):
        (tmp_path / inner).mkdir(parents=True)
        garment("bag", 70 + number).save(tmp_path / inner / "same.png")
    (tmp_path / "bag/left/beside").symlink_to("../../deep")
    (tmp_path / "deep/beside").symlink_to("../bag/left")
    data = read_folder(tmp_path, spec(28, 28))
    inner = {name: data.classes[label] for name, label in zip(data.names, data.labels, strict=True) if "same" in name}
    assert inner == {
        "bag/left/same.png": "bag",
        "bag/left/beside/only/here/same.png": "bag",
        "bag/left/far/same.png": "bag",
        "deep/only/here/same.png": "deep",
        "deep/beside/same.png": "deep",
        "deep/beside/far/same.png": "deep",
    }
    assert capsys.readouterr().err.replace(f"{tmp_path}: ", "").splitlines() == [
        "left out hidden entries (1): bag/.hidden",
        "left out links back to a parent folder (2): bag/left/beside/beside, deep/beside/beside",
        "images in folders inside class folders (6) have the class of the outermost folder: "
        "bag/left/same.png, bag/left/beside/only/here/same.png, bag/left/far/same.png, deep/beside/same.png, "
        "deep/beside/far/same.png and 1 more",
    ]


def test_of_many_names_the_first_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of_classes(tmp_path)
    for number in range(1000):
        (tmp_path / f"bag/{number:03}.txt").touch()
    read_folder(tmp_path, spec(28, 28))
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "left out other files (1,000): bag/000.txt, bag/001.txt, bag/002.txt, bag/003.txt, bag/004.txt and 995 more"
    )


def test_a_class_that_lost_all_of_its_images_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_folder(tmp_path, 10, seed=0)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/broken.png").write_bytes(b"")
    data = read_folder(tmp_path, spec(28, 28))
    assert data.classes == tuple(sorted(GARMENTS))
    assert np.bincount(data.labels).tolist() == [10] * 4
    assert "left out classes without a readable image (1): alone" in capsys.readouterr().err


@pytest.mark.parametrize("name", [b"two\nlines", b"\xff\xfe", b"\x1b[31m", "a\u2028b".encode()])
def test_a_class_is_not_named_by_what_no_label_can_be(tmp_path: Path, name: bytes) -> None:
    folder_of_classes(tmp_path)
    (tmp_path / "bag").rename(tmp_path / os.fsdecode(name))
    with pytest.raises(TrainingError, match=r"cannot name a class: .* rename it") as refused:
        read_folder(tmp_path, spec(28, 28))
    assert str(refused.value).encode().isascii()
    assert str(refused.value).isprintable()


def test_names_of_images_can_be_written_anywhere(tmp_path: Path) -> None:
    folder_of_classes(tmp_path)
    for name in (b"\xff.png", b"\n.png", "ü\u200cعکس.png".encode()):
        (tmp_path / "bag" / os.fsdecode(name)).write_bytes((tmp_path / "bag/28.png").read_bytes())
    names = read_folder(tmp_path, spec(28, 28)).names
    assert {"bag/\\xff.png", "bag/\\n.png", "bag/ü\u200cعکس.png"} <= set(names)


def test_masks_are_found_by_kind_and_name_and_strays_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_inspection(tmp_path)
    masks = tmp_path / "ground_truth"
    (masks / "dot/001_mask.png").rename(masks / "dot/001.BMP")  # its suffix is not its format: the bytes decide
    (masks / "line/000_mask.png").rename(masks / "line/900_mask.png")
    (masks / "good").mkdir()
    data = read_folder(tmp_path / "test", spec(28, 28), masks=masks)
    found = {name: mask.file for name, mask in zip(data.names, data.masks, strict=True)}
    assert found["dot/000.png"] == masks / "dot/000_mask.png"
    assert found["dot/001.png"] == masks / "dot/001.BMP"
    assert found["line/000.png"] is None
    assert {found[name] for name in found if name.startswith("good")} == {None}
    assert all(mask.image.is_file() for mask in data.masks)
    assert capsys.readouterr().err == (
        f"{tmp_path / 'test'}: left out masks without an image (1): ground_truth/line/900_mask.png\n"
    )
    assert data.take(np.array([3, 0])).masks == (data.masks[3], data.masks[0])


def test_a_folder_of_masks_is_no_class(tmp_path: Path) -> None:
    folder_of_classes(tmp_path)
    (tmp_path / "ground_truth").mkdir()
    garment("bag", 28).save(tmp_path / "ground_truth/28.png")
    assert "ground_truth" not in read_folder(tmp_path, spec(28, 28)).classes
