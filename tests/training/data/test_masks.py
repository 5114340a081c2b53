from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import draw_inspection, spec

from training.data import masks
from training.data.imageset import ImageSet
from training.data.splits import train_and_test
from training.errors import TrainingError
from training.recipe import Split


def test_a_thin_defect_stays_one_however_small_the_input(tmp_path: Path) -> None:
    crack = np.zeros((200, 200), np.uint8)
    for step in range(180):
        crack[10 + step // 3 : 12 + step // 3, 10 + step] = 255
    for name in ("test/crack/0.png", "ground_truth/crack/0_mask.png", "train/good/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(crack).save(tmp_path / name)
    for side in (200, 60, 25):
        _, data = train_and_test(str(tmp_path), spec(side, side), Split(), seed=0)
        numbers, _ = masks.placed(data, 0, spec(side, side))
        assert np.unique(numbers).tolist() == [0, 1]


def test_masks_are_known_of_sound_images_and_of_those_with_a_file(tmp_path: Path) -> None:
    draw_inspection(tmp_path)
    (tmp_path / "ground_truth/dot/002_mask.png").unlink()
    _, data = train_and_test(str(tmp_path), spec(32, 32), Split(), seed=0)
    unknown = [data.names[index] for index in np.flatnonzero(~masks.are_known(data))]
    assert unknown == ["dot/002.png"]
    for index in range(len(data)):
        numbers, inside = masks.placed(data, index, spec(32, 32))
        assert inside.all()
        assert bool(numbers.any()) == bool(data.defective[index] and data.names[index] != "dot/002.png")


def test_without_masks_nothing_is_marked() -> None:
    data = ImageSet(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]), ("crack", "good"), sound="good")
    assert masks.are_known(data).tolist() == [False, True]
    assert not masks.placed(data, 0, spec(4, 4))[0].any()


def test_an_image_that_went_missing_is_named(tmp_path: Path) -> None:
    draw_inspection(tmp_path)
    _, data = train_and_test(str(tmp_path), spec(32, 32), Split(), seed=0)
    data.masks[0].image.write_bytes(b"text")
    with pytest.raises(TrainingError, match=r"test/dot/000\.png"):
        masks.placed(data, 0, spec(32, 32))
