"""What a recipe leaves to the images, decided by images that are drawn here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import idx

from training.__main__ import main
from training.data.resolution import in_words, settled
from training.data.splits import list_training_part, train_and_test
from training.errors import TrainingError
from training.recipe import Augment, Input, Pretrain, Recipe, Split

AUTO: dict[str, Any] = {"height": "auto", "width": "auto"}
RNG = np.random.default_rng(0)


def recipe(target: Path, **asked: Any) -> Recipe:
    return Recipe(name="auto", title="auto", source=str(target), target=str(target), input=Input(**asked))


def sides(target: Path, **asked: Any) -> tuple[object, object]:
    chosen = settled(recipe(target, **{**AUTO, **asked})).input
    return chosen.height, chosen.width


def draw(folder: Path, sizes: Sequence[tuple[int, int]], mode: str = "L", orientation: int = 1) -> Path:
    """JPEGs of these (height, width), as the file stores them."""
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number, (height, width) in enumerate(sizes):
        Image.new(mode, (width, height), "#4080c0").save(folder / f"{number:04}.jpg", exif=exif)
    return folder


@pytest.mark.parametrize(
    ("height", "width", "chosen"),
    [
        (300, 300, (224, 224)),
        (300, 450, (224, 352)),  # 336 lies between 320 and 352
        (450, 300, (352, 224)),
        (1250, 500, (576, 224)),
        (32, 32, (128, 128)),  # four times its size
        (28, 28, (96, 96)),  # 112 would be; no more than four times in any case
        (55, 110, (192, 384)),
        (6, 6, (32, 32)),
        (300, 3000, (224, 896)),  # no longer than four short sides
        (3000, 300, (896, 224)),
        (1, 40, (32, 128)),
    ],
)
def test_the_size_follows_the_images(tmp_path: Path, height: int, width: int, chosen: tuple[int, int]) -> None:
    draw(tmp_path / "images", [(height, width)] * 10)
    assert sides(tmp_path / "images") == chosen


@pytest.mark.parametrize(
    ("short_side", "chosen"), [(320, (320, 480)), (100, (96, 160)), (64, (64, 96)), (10, (32, 64))]
)
def test_the_short_side_is_the_recipes(tmp_path: Path, short_side: int, chosen: tuple[int, int]) -> None:
    draw(tmp_path / "images", [(300, 450)] * 10)
    assert sides(tmp_path / "images", short_side=short_side) == chosen


def test_a_side_that_is_a_number_stays(tmp_path: Path) -> None:
    draw(tmp_path / "images", [(300, 450)] * 10)
    assert sides(tmp_path / "images", height=100) == (100, 160)
    assert sides(tmp_path / "images", width=100) == (64, 100)


@pytest.mark.parametrize(
    ("orientation", "chosen"), [(1, (224, 352)), (3, (224, 352)), (6, (352, 224)), (8, (352, 224))]
)
def test_a_photograph_counts_as_it_is_looked_at(tmp_path: Path, orientation: int, chosen: tuple[int, int]) -> None:
    draw(tmp_path / "images", [(300, 450)] * 10, orientation=orientation)
    assert sides(tmp_path / "images") == chosen


def test_mixed_sizes_and_directions_have_a_middle(tmp_path: Path) -> None:
    lying, upright = [(300, 600)] * 20, [(600, 300)] * 20
    assert sides(draw(tmp_path / "as many", [*lying, *upright])) == (224, 224)
    assert sides(draw(tmp_path / "more lying", [*lying, *upright[:10]])) == (224, 448)
    assert sides(draw(tmp_path / "more upright", [*lying[:10], *upright])) == (448, 224)
    assert sides(draw(tmp_path / "one odd", [*lying, (4000, 30)])) == (224, 448)
    assert sides(draw(tmp_path / "small and large", [(20, 40)] * 15 + [(2000, 4000)] * 5)) == (64, 128)


def test_every_format_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("png", "webp", "tiff", "jpg"):
        for number in range(3):
            Image.new("RGB", (300, 100)).save(folder / f"{number}.{kind}", exif=exif)
    assert sides(folder) == (672, 224)


def test_images_that_do_not_open_do_not_count(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images", [(300, 450)] * 3)
    for number in range(20):
        (folder / f"broken {number}.jpg").write_bytes(b"\xff\xd8\xff nothing more")
        (folder / f"text {number}.png").write_bytes(b"hello")
    assert sides(folder) == (224, 352)


def test_where_no_image_opens_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png").write_bytes(b"hello")
    with pytest.raises(TrainingError, match=r"no image can be read \(.*0\.png.*\): repair or replace them"):
        settled(recipe(folder, **AUTO))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="no images in it"):
        settled(recipe(tmp_path / "empty", **AUTO))


def test_one_image_is_enough_to_decide(tmp_path: Path) -> None:
    draw(tmp_path / "parts/train", [(64, 128)])
    draw(tmp_path / "parts/test", [(500, 500)] * 5)
    assert sides(tmp_path / "parts") == (224, 448)


def test_the_test_part_decides_nothing(tmp_path: Path) -> None:
    """Neither one of its own, nor the share of a folder that is held out."""
    draw(tmp_path / "parts/train", [(200, 400)] * 4, "L")
    draw(tmp_path / "parts/test", [(400, 200)] * 40, "RGB")
    chosen = settled(recipe(tmp_path / "parts", **AUTO, channels="auto")).input
    assert (chosen.height, chosen.width, chosen.channels) == (224, 448, 1)

    whole = draw(tmp_path / "whole", [(200, 300)] * 60)
    rules = Split(test=0.7)
    _, test = train_and_test(str(whole), Input(height=8, width=8).spec(), rules, seed=0)
    assert len(test) == 42
    for name in test.names:
        Image.new("RGB", (300, 900), "red").save(whole / name)
    listed = list_training_part(str(whole), rules, seed=0)
    assert set(listed.names).isdisjoint(test.names)
    asked = recipe(whole, **AUTO, channels="auto").with_parts(split=rules)
    chosen = settled(asked).input
    assert (chosen.height, chosen.width, chosen.channels) == (224, 352, 1)


def test_groups_stay_together_in_what_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for number in range(30):
            Image.fromarray(RNG.integers(0, 256, (5, 9), dtype=np.uint8)).save(
                folder / kind / f"{number // 3}_{number}.png"
            )
    rules = Split(groups=r"(\d+)_")
    train, _ = train_and_test(str(folder), Input(height=5, width=9).spec(), rules, seed=3)
    listed = list_training_part(str(folder), rules, seed=3)
    assert listed.names == train.names
    assert np.array_equal(listed.labels, train.labels)
    assert listed.classes == train.classes
    assert [path.name for path in listed.images] == [Path(name).name for name in listed.names]


def test_arrays_have_their_own_size(tmp_path: Path) -> None:
    for part, stem in (("train", "train"), ("test", "t10k")):
        images = RNG.integers(0, 256, (20, 40, 100), dtype=np.uint8)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(np.arange(20, dtype=np.uint8) % 2))
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez(tmp_path / "npz" / f"{part}.npz", images=np.stack([images[:, :32, :32]] * 3, axis=-1))
    chosen = settled(recipe(tmp_path, **AUTO, channels="auto")).input
    assert (chosen.height, chosen.width, chosen.channels) == (160, 416, 1)
    chosen = settled(recipe(tmp_path / "npz", **AUTO, channels="auto")).input
    assert (chosen.height, chosen.width, chosen.channels) == (128, 128, 1), "three equal channels are grey"


def test_a_named_set_is_measured(named: Path) -> None:
    assert sides(Path("mnist")) == (96, 96)


@pytest.mark.parametrize(
    ("last", "channels"), [("L", 1), ("grey in colour", 1), ("a red dot", 3), ("palette", 3), ("16 bits", 1)]
)
def test_channels_are_grey_where_all_images_are(tmp_path: Path, last: str, channels: int) -> None:
    """One of 300 has colours: it is not missed, though only some images are decoded."""
    folder = draw(tmp_path / "images/train", [(40, 40)] * 299)
    draw(tmp_path / "images/test", [(40, 40)], "RGB")
    noise = RNG.integers(0, 256, (40, 40), dtype=np.uint8)
    dotted = np.stack([noise] * 3, axis=-1)
    if last == "a red dot":
        dotted[10:14, 10:14] = (255, 0, 0)
    made = {
        "L": Image.fromarray(noise),
        "grey in colour": Image.fromarray(dotted),
        "a red dot": Image.fromarray(dotted),
        "palette": Image.new("RGB", (40, 40), "#4080c0").quantize(4),
        "16 bits": Image.fromarray(noise.astype(np.uint16) * 256),
    }
    made[last].save(folder / "last.png")
    assert settled(recipe(tmp_path / "images", height=40, width=40, channels="auto")).input.channels == channels


def test_the_mean_colour_is_that_of_the_training_images(tmp_path: Path) -> None:
    for part, colour in (("train", (200, 100, 0)), ("test", (0, 0, 0))):
        folder = tmp_path / part
        folder.mkdir()
        for number in range(6):
            Image.new("RGB", (30, 20), colour if number % 2 else (100, 50, 30)).save(folder / f"{number}.png")
    asked = {"height": 20, "width": 20, "resize": "pad", "padding": "mean"}
    assert settled(recipe(tmp_path, **asked, channels=3)).input.padding == (150, 75, 15)
    [level] = settled(recipe(tmp_path, **asked, channels=1)).input.padding
    assert abs(level - (118.5 + 62.67) / 2) <= 1  # of the two colours' luma
    assert settled(recipe(tmp_path, **asked, channels="auto")).input.spec().padding == (150, 75, 15)


def test_what_is_decided_is_said_and_nothing_else_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = recipe(draw(tmp_path / "images", [(300, 450)] * 10), **AUTO, resize="crop")
    chosen = settled(asked)
    assert capsys.readouterr().err == (
        f"{tmp_path / 'images'}: its training images decide input.height=224, input.width=352\n"
    )
    assert chosen.input.resize == "crop"
    assert chosen.model_copy(update={"input": asked.input}) == asked
    assert settled(chosen) is chosen
    assert capsys.readouterr().err == ""


def test_images_that_make_no_square_are_not_transposed(tmp_path: Path) -> None:
    asked = recipe(draw(tmp_path / "images", [(300, 450)] * 10), **AUTO)
    asked = asked.with_parts(pretrain=Pretrain(augment=Augment(flip="any")))
    with pytest.raises(TrainingError, match="flip=any is for squares, not for 224 by 352 pixels"):
        settled(asked)


def test_an_undecided_input_has_no_spec() -> None:
    with pytest.raises(TrainingError, match=r"input\.height=auto was not decided by images"):
        Input(**AUTO).spec()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"padding": "edge"}, "resize is stretch"),
        ({"resize": "pad", "padding": (1, 2, 3)}, "3 levels for 1 channels"),
        ({"resize": "pad", "padding": (1,), "channels": "auto"}, "1 levels for auto channels"),
        ({"resize": "pad", "padding": (1, 2, 256), "channels": 3}, "less than or equal to 255"),
        ({"height": "automatic"}, "height"),
        ({"short_side": 0}, "short_side"),
    ],
)
def test_an_input_that_cannot_be_meant_is_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Input(**asked)


def test_data_says_what_auto_would_choose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("a", "b"):
        draw(tmp_path / "images" / kind, [(300, 450)] * 10)
    assert main(["data", str(tmp_path / "images")]) == 0
    assert (
        "input.height=auto, width=auto, channels=auto: 224, 352, 1; "
        "the median image is 300 pixels on its shorter side, and 1.50 times as wide as high"
    ) in capsys.readouterr().out.splitlines()


def test_that_small_defects_of_large_pictures_would_be_lost_is_said(tmp_path: Path) -> None:
    for folder, side in (("large", 1000), ("usual", 500)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("L", (side + 100, side), number).save(tmp_path / folder / f"{number}.png")
    assert "each pixel holds 4 × 4: for small defects set input.tiles=512" in in_words(str(tmp_path / "large"), Split())
    assert "tiles" not in in_words(str(tmp_path / "usual"), Split())
