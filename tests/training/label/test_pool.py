"""Which images of a folder or a list have a label, and which have none."""

import shutil
from pathlib import Path

import pytest
from support import draw_folder

from training.errors import TrainingError
from training.label.pool import Pool, read_pool


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw_folder(tmp_path / "photos", 3, seed=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels_of(pool: Pool) -> dict[str, str]:
    return dict(zip(pool.names, pool.labels, strict=True))


def read(data: str = "photos", out: str = "out") -> dict[str, str]:
    return labels_of(read_pool(data, Path(out)))


def flat(here: Path, name: str = "flat") -> None:
    (here / name).mkdir(parents=True)
    for path in (here / "photos").glob("*/*.png"):
        shutil.copy(path, here / name / f"{path.parent.name}-{path.name}")


def test_class_folders_are_labels_and_images_beside_them_have_none(here: Path) -> None:
    shutil.copy("photos/bag/0.png", "photos/loose.png")
    found = read()
    assert found["bag/1.png"] == "bag"
    assert found["loose.png"] == ""


def test_a_folder_named_unlabelled_is_no_class(here: Path) -> None:
    Path("photos/bag").rename("photos/Unlabelled")
    found = read()
    assert {found[f"Unlabelled/{number}.png"] for number in range(3)} == {""}
    assert "" not in {label for name, label in found.items() if not name.startswith("Unlabelled")}


def test_of_a_flat_folder_or_of_a_single_one_no_image_has_a_label(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat(here, "flat")
    assert set(read("flat").values()) == {""}
    flat(here, "camera/DCIM")
    assert set(read("camera").values()) == {""}
    assert "DCIM is the only folder of images: it is not taken for a label" in capsys.readouterr().err


def test_the_test_part_is_left_for_measuring(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        draw_folder(here / "parted" / part, 2, seed=1)
    assert len(read("parted")) == len(read()) * 2 // 3
    assert "test is left for measuring" in capsys.readouterr().err
    Path("list.csv").write_text(
        "path,label,split\nphotos/bag/0.png,bag,train\nphotos/bag/1.png,,\nphotos/bag/2.png,bag,test\n"
    )
    assert read("list.csv") == {"photos/bag/0.png": "bag", "photos/bag/1.png": ""}
    assert "1 lines of the test part" in capsys.readouterr().err


def test_labels_that_were_filled_in_come_before_those_of_the_folder(here: Path) -> None:
    Path("out").mkdir()
    Path("out/labels.csv").write_text("path,label\n../photos/bag/0.png,shoe\n../photos/bag/1.png,\n")
    found = read()
    assert found["bag/0.png"] == "shoe"
    assert found["bag/1.png"] == "bag"


def test_a_line_without_a_label_may_name_an_image_that_was_moved(here: Path) -> None:
    """Whoever sorts the images into folders leaves the list as it is."""
    flat(here)
    Path("out").mkdir()
    Path("out/labels.csv").write_text("path,label\n../flat/gone.png,\n")
    assert len(read("flat")) == len(read())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n../photos/gone.png,bag\n", "line 2: ../photos/gone.png has a label, and is not among the images"),
        ("path,label,note\n../photos/bag/0.png,bag,old\n", "has columns beside path and label, which would be lost"),
    ],
)
def test_no_label_is_lost(here: Path, text: str, message: str) -> None:
    Path("out").mkdir()
    Path("out/labels.csv").write_text(text)
    with pytest.raises(TrainingError, match=message):
        read()


def test_a_name_that_no_csv_can_hold_is_left_out_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat(here)
    shutil.copy("photos/bag/0.png", "flat/two\nlines.png")
    assert len(read("flat")) == len(read())
    assert "left out names that no CSV can hold (1): two\\nlines.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("mnist", "mnist: label takes a folder of image files, or a CSV of them"),
        ("nowhere", "nowhere: label takes a folder"),
        ("", "'': label takes a folder"),
        ("empty", "empty: no images in it"),
    ],
)
def test_what_holds_no_images_is_named(here: Path, data: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(TrainingError, match=message):
        read(data)


def test_a_list_of_the_test_part_alone_is_named(here: Path) -> None:
    Path("list.csv").write_text("path,label,split\nphotos/bag/0.png,bag,test\n")
    with pytest.raises(TrainingError, match="every line is of the test part"):
        read("list.csv")
