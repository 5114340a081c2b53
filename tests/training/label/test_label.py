"""Round after round: what is asked, what is written, what is read back."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, draw_folder, environment

from app.bundle.drawings import GARMENTS
from training.__main__ import main
from training.data.read import read_part
from training.recipe import Input

BASE = str(ROOT / "models/fashion-mnist/1")
KINDS = len(GARMENTS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 of each garment, in one flat folder; the true kind begins the name."""
    draw_folder(tmp_path / "sorted", 30, seed=0)
    (tmp_path / "photos").mkdir()
    for path in sorted((tmp_path / "sorted").glob("*/*.png")):
        shutil.copy(path, tmp_path / "photos" / f"{path.parent.name}-{path.name}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def label(*arguments: str, data: str = "photos") -> list[tuple[str, str]]:
    assert main(["label", data, "--base", BASE, *arguments]) == 0
    return rows(Path("runs") / f"label-{Path(data).stem}" / "labels.csv")


def rows(file: Path) -> list[tuple[str, str]]:
    with file.open(newline="") as text:
        head, *lines = csv.reader(text)
    assert head == ["path", "label"]
    return [(path, given) for path, given in lines]


def kind(path: str) -> str:
    return Path(path).name.rpartition("-")[0]


def fill_in(lines: list[tuple[str, str]], file: str = "runs/label-photos/labels.csv") -> None:
    with Path(file).open("w", newline="") as text:
        csv.writer(text).writerows([("path", "label"), *((path, given or kind(path)) for path, given in lines)])


def test_the_list_is_filled_in_and_read_back_round_after_round(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = label("--count", "12")
    told = capsys.readouterr()
    assert told.out == "runs/label-photos/labels.csv\n"
    assert f"photos: {30 * KINDS} images, 0 with a label" in told.err
    assert "typical: no image has a label" in told.err
    assert len(first) == 12
    assert {given for _, given in first} == {""}
    fill_in(first)
    second = label("--count", "30")
    assert "cover: 12 labels of" in capsys.readouterr().err
    assert [given for _, given in second[:12]] == [kind(path) for path, _ in second[:12]], "what is done comes first"
    assert {path for path, given in second if given} == {path for path, _ in first}
    fill_in(second)
    third = label("--count", "20")
    assert "teach: 42 labels of" in capsys.readouterr().err
    assert len(third) == len(dict(third)) == 62, "nothing is asked twice"
    fill_in(third)
    images = read_part("runs/label-photos/labels.csv", "train", Input(height=28, width=28).spec())
    assert len(images) == 62
    assert set(images.classes) == set(GARMENTS)


def test_the_first_dozen_shows_more_kinds_than_chance_does(here: Path) -> None:
    """One kind is rare: of 12 drawn at random every third draw misses it."""
    rare = sorted(GARMENTS)[0]
    for path in sorted(Path("photos").glob(f"{rare}-*.png"))[12:]:
        path.unlink()
    asked = label("--count", "12")
    assert {kind(path) for path, _ in asked} == set(GARMENTS)


def test_labels_that_were_exchanged_come_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, kinds = np.random.default_rng(0), sorted(GARMENTS)
    files = sorted(Path("sorted").glob("*/*.png"))
    wrong = set()
    for at in rng.choice(len(files), len(files) // 20, replace=False):
        path = files[at]
        other = kinds[(kinds.index(path.parent.name) + int(rng.integers(1, KINDS))) % KINDS]
        wrong.add(str(path.rename(f"sorted/{other}/was-{path.parent.name}-{path.name}")))
    lines = label(data="sorted")
    assert "check: " in capsys.readouterr().err
    assert len(lines) == len(files), "the list is whole: it can be trained on"
    hits = [path for path, _ in lines[: len(wrong)] if path.removeprefix("../../") in wrong]
    assert len(hits) >= 0.8 * len(wrong)
    assert lines[0][1] == Path(lines[0][0]).parent.name, "with the label that it has"


def test_a_correction_counts_though_the_folder_says_otherwise(here: Path) -> None:
    bag, other = sorted(GARMENTS)[0], sorted(GARMENTS)[1]
    Path(f"sorted/{bag}/0.png").rename(f"sorted/{other}/astray.png")
    before = dict(label(data="sorted"))
    fill_in(
        [(path, bag if "astray" in path else given) for path, given in before.items()], "runs/label-sorted/labels.csv"
    )
    after = dict(label(data="sorted"))
    assert after[f"../../sorted/{other}/astray.png"] == bag
    assert len(after) == len(before)


def test_of_copies_one_is_asked_and_none_where_one_has_a_label(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(Path("photos").iterdir()):
        shutil.copy(path, f"photos/{path.stem}-copy.png")
    count = 30 * KINDS
    capsys.readouterr()
    asked = label("--count", str(2 * count))
    told = capsys.readouterr().err
    stems = [Path(path).stem.removesuffix("-copy") for path, _ in asked]
    assert len(set(stems)) == len(stems)
    assert f"{2 * count} images were asked for, and {len(asked)} are left to label" in told
    fill_in([(path, Path(path).name.split("-")[0]) for path, _ in asked])
    label()
    assert "check: " in capsys.readouterr().err, "no image is left to label"


def test_copies_with_two_labels_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = sorted(GARMENTS)[:2]
    shutil.copy(f"sorted/{one}/0.png", f"sorted/{other}/copy.png")
    label(data="sorted")
    assert (
        f"note: copies with two labels: {one}/0.png ({one}) and {other}/copy.png ({other})" in capsys.readouterr().err
    )


def test_labels_can_be_checked_before_all_images_have_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(f"sorted/{sorted(GARMENTS)[0]}/0.png", "sorted/loose.png")
    label("--check", "--count", "5", data="sorted")
    assert "check: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--check"], "0 labels of 0 kinds"),
        (["photos", "--no-outside-weights"], "--no-outside-weights needs --base models/NAME/VERSION"),
        (["photos", "--base", "nowhere"], "--base nowhere: no such path"),
        (["photos", "--out", "file", "--base", BASE], "--out file: a file: name a folder"),
        (["mnist", "--base", BASE], "mnist: label takes a folder of image files"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("mine")
    arguments = arguments if "--base" in arguments or "weights" in arguments[-1] else [*arguments, "--base", BASE]
    assert main(["label", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_torch_it_labels_by_a_given_bundle(here: Path) -> None:
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'onnxscript', 'httpx', 'rich'));"
    code = f"{blocked} from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "label", "photos", "--base", BASE]
    done = subprocess.run(command, cwd=here, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/label-photos/labels.csv\n"


def test_the_label_of_an_image_that_broke_stays_in_the_list(here: Path) -> None:
    fill_in(label("--count", "12"))
    before = rows(Path("runs/label-photos/labels.csv"))
    (Path("runs/label-photos") / before[0][0]).write_text("no image")
    assert before[0] in label("--count", "12")


def test_a_list_that_is_labelled_in_its_own_folder_loses_no_column(here: Path) -> None:
    text = "path,label,group\nphotos/bag-0.png,bag,g1\nphotos/bag-1.png,,g1\n"
    Path("labels.csv").write_text(text)
    assert main(["label", "labels.csv", "--out", ".", "--base", BASE]) == 2
    assert Path("labels.csv").read_text() == text


def test_in_a_list_of_several_labels_a_question_mark_says_that_nobody_has_looked(here: Path) -> None:
    paths = sorted(Path("photos").iterdir())[:40]
    cells = ["b|a", "a", "", *("?" for _ in paths[3:])]
    Path("list.csv").write_text(
        "\n".join(["path,label", *(f"{path},{cell}" for path, cell in zip(paths, cells, strict=True))])
    )
    first = dict(label("--count", "10", data="list.csv"))
    given = {path.removeprefix("../../"): cell for path, cell in first.items()}
    assert [given[str(path)] for path in paths[:3]] == ["a|b", "a", "|"], "what is known stays"
    asked = [path for path, cell in first.items() if cell == "?"]
    assert len(asked) == 10
    assert "Write | between the labels" in Path("runs/label-list/sheet.html").read_text()
    filled = {**first, asked[0]: "", asked[1]: "a|b"}
    with Path("runs/label-list/labels.csv").open("w", newline="") as text:
        csv.writer(text).writerows([("path", "label"), *filled.items()])
    second = dict(label("--count", "10", data="list.csv"))
    assert (second[asked[0]], second[asked[1]]) == ("|", "a|b"), "an emptied cell says that there is none"
    images = read_part("runs/label-list/labels.csv", "train", None)
    assert images.several is not None
    assert len(images) == 5, "lines that nobody has looked at are left out"
    assert images.several.sum(axis=1).tolist().count(0) == 2


def test_a_folder_whose_list_gets_several_labels_asks_for_its_empty_cells_again(here: Path) -> None:
    first = label("--count", "12")
    lines = [(path, "a|b" if number == 0 else "") for number, (path, _) in enumerate(first)]
    with Path("runs/label-photos/labels.csv").open("w", newline="") as text:
        csv.writer(text).writerows([("path", "label"), *lines])
    second = dict(label("--count", "12"))
    assert second[first[0][0]] == "a|b"
    assert list(second.values()).count("?") == 12
