from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import draw_inspection, spec

from app.bundle import preprocess
from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from training.__main__ import main
from training.data.checks import (
    class_warnings,
    duplicate_warnings,
    duplicates,
    mask_warnings,
    part_warnings,
    table,
)
from training.data.imageset import ImageSet
from training.data.splits import train_and_test
from training.recipe import Split

RNG = np.random.default_rng(0)
NO_LABELS = np.array([], np.int64)


def images(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)


def labelled(*counts: int) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), counts)
    return ImageSet(images(len(labels)), labels, tuple(f"class-{i}" for i in range(len(counts))))


def test_the_table_counts_both_parts() -> None:
    lines = [line.split() for line in table(labelled(30, 5), labelled(3, 2))]
    assert lines == [["class", "train", "test"], ["class-0", "30", "3"], ["class-1", "5", "2"]]
    plain = ImageSet(images(4), NO_LABELS, ())
    assert table(plain, plain) == ["4 images without labels to train on, 4 to test on"]


def test_classes_are_counted_by_name_whichever_part_has_them() -> None:
    train = ImageSet(images(3), np.array([0, 0, 1]), ("good", "worn"))
    test = ImageSet(images(4), np.array([0, 1, 1, 1]), ("crack", "good"))
    assert [line.split() for line in table(train, test)[1:]] == [
        ["good", "2", "3"],
        ["worn", "1", "0"],
        ["crack", "0", "1"],
    ]
    output = list(part_warnings(train, test))
    assert output[0].startswith("in the test part only: crack. If these are defects")
    assert output[1].startswith("in the training part only: worn.")
    assert list(part_warnings(train, train)) == []


def test_images_without_labels_beside_classes_are_counted() -> None:
    plain, test = ImageSet(images(4), NO_LABELS, ()), labelled(1, 2)
    assert [line.split()[-2:] for line in table(plain, test)[1:]] == [["0", "1"], ["0", "2"], ["4", "0"]]
    assert table(plain, test)[-1].startswith("(no label)")
    assert list(part_warnings(plain, test)) == []


def test_few_images_imbalance_and_a_lone_class_are_told() -> None:
    assert list(class_warnings(labelled(40, 30))) == []
    assert "classes with few images: class-1 (3); with fewer than 10" in " ".join(class_warnings(labelled(40, 3)))
    assert any("10 times the images of class-1" in warning for warning in class_warnings(labelled(300, 30)))
    assert any("only class" in warning for warning in class_warnings(labelled(40)))


def test_exact_and_near_duplicates_are_found_and_strangers_are_not() -> None:
    train = ImageSet(images(50), NO_LABELS, (), tuple(f"train/{i}.png" for i in range(50)))
    fresh = images(10)
    fresh[3] = train.images[7]
    fresh[5] = np.clip(train.images[9].astype(int) + RNG.integers(-3, 4, (16, 16, 1)), 0, 255)
    test = ImageSet(fresh, NO_LABELS, (), tuple(f"test/{i}.png" for i in range(10)))
    assert duplicates(train, test) == ([(3, 7)], [(5, 9)])
    output = list(duplicate_warnings(train, test))
    assert "has 1 too (the first: test/3.png is, to the pixel, train/7.png)" in output[0]
    assert "test/5.png is within 4 grey levels of train/9.png" in output[1]


def test_the_same_averages_with_another_texture_are_no_duplicate() -> None:
    """Eight by eight means are only where the search begins."""
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, ..., None]
    assert duplicates(ImageSet(board, NO_LABELS, ()), ImageSet(255 - board, NO_LABELS, ())) == ([], [])


def test_a_jpeg_of_a_training_image_is_near(tmp_path: Path) -> None:
    garment("bag", 64).save(tmp_path / "bag.jpg", quality=85)
    again = preprocess((tmp_path / "bag.jpg").read_bytes(), spec(64, 64))
    train = ImageSet(np.stack([preprocess(png(garment(kind, 64)), spec(64, 64)) for kind in GARMENTS]), NO_LABELS, ())
    assert duplicates(train, ImageSet(again[None], NO_LABELS, ()))[1] == [(0, GARMENTS.index("bag"))]


def test_the_command_shows_table_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in GARMENTS:
        for part in ("train", "test"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(3):
                noise = Image.fromarray(RNG.integers(0, 256, (40, 40), dtype=np.uint8))
                noise.save(tmp_path / part / kind / f"{number}.png")
    assert main(["data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].split() == ["bag", "3", "3"]
    assert "note: classes with few images: bag (3), sneaker (3), t-shirt (3), trouser (3)" in out
    assert main(["data", str(tmp_path), "--download"]) == 2


def test_what_is_wrong_with_masks_is_told_by_its_kind(tmp_path: Path) -> None:
    draw_inspection(tmp_path, defects=6)
    masks = tmp_path / "ground_truth/dot"

    def rewrite(number: int, pixels: np.ndarray) -> None:
        Image.fromarray(pixels.astype(np.uint8)).save(masks / f"{number:03}_mask.png")

    whole = np.asarray(Image.open(masks / "001_mask.png"))
    (masks / "000_mask.png").unlink()
    rewrite(1, whole * 0)
    rewrite(2, 255 - whole)
    rewrite(3, whole[:, :20])
    rewrite(4, np.kron(whole, np.ones((2, 2))))
    (masks / "005_mask.png").write_bytes(b"text")
    _, test = train_and_test(str(tmp_path), spec(16, 16), Split(), seed=0)
    output = dict(line.rsplit(": ", 1)[::-1] for line in mask_warnings(test))
    beginnings = {
        "dot/000.png": "defects without a mask: where they are is not known, and not measured (1)",
        "dot/001.png": "masks without a white pixel (1)",
        "dot/002.png": "masks that are white over more than 50% of the image: white must be the defect (1)",
        "dot/003.png": "masks of another aspect than their image: they are stretched to it (1)",
        "dot/004.png": "masks of another size than their image: they are scaled to it (1)",
        "dot/005.png": "masks that cannot be read, as ",
    }
    assert output.keys() == beginnings.keys()
    for name, beginning in beginnings.items():
        assert output[name].startswith(beginning)


def test_sound_images_are_counted_against_the_rate_they_bear() -> None:
    few = ImageSet(images(24), np.zeros(24, np.int64), ("good",), sound="good")
    assert list(class_warnings(few)) == [
        "few sound images (24): where a fifth is held out to set the threshold, 4 images bear no rate of false alarms "
        "below 20.0%; with 100 it could be 5 %; the recipe inspect holds none out"
    ]
    assert list(class_warnings(few, folds=5)) == [], "none is held out"
    assert list(class_warnings(ImageSet(images(100), np.zeros(100, np.int64), ("good",), sound="good"))) == []
