from pathlib import Path

import numpy as np
import pytest
from support import draw_inspection, spec

from training.__main__ import main
from training.data.read import has_parts, read_part
from training.data.splits import train_and_held_out, train_and_test
from training.errors import TrainingError
from training.recipe import Split

SPEC = spec(32, 32)


def write(folder: Path, text: str, encoding: str = "utf-8") -> str:
    draw_inspection(folder)
    (folder / "list.csv").write_text(text, encoding=encoding)
    return str(folder / "list.csv")


FULL = """path,label,split,group,mask
train/good/000.png,good,train,a,
train/good/001.png,good,train,b,
test/good/000.png,good,test,c,
test/dot/000.png,dot,test,d,ground_truth/dot/000_mask.png
test/line/000.png,line,test,d,
"""


def test_a_line_for_each_image(tmp_path: Path) -> None:
    data = write(tmp_path, FULL)
    assert has_parts(data)
    train, test = train_and_test(data, SPEC, Split(), seed=0)
    assert (train.names, train.classes, train.groups) == (
        ("train/good/000.png", "train/good/001.png"),
        ("good",),
        ("a", "b"),
    )
    assert (test.sound, test.kinds, test.groups) == ("good", ("dot", "line"), ("c", "d", "d"))
    assert [mask.file for mask in test.masks] == [None, tmp_path / "ground_truth/dot/000_mask.png", None]
    whole = read_part(str(tmp_path), "test", SPEC)
    assert np.array_equal(test.images[1], whole.images[whole.names.index("dot/000.png")])


@pytest.mark.parametrize(
    "text",
    [
        "Image;Class;Part\r\ntrain\\good\\000.png;good;Training\r\n\r\ntest/dot/000.png;dot;TEST\r\n",
        "file\tkind\tsplit\n  train/good/000.png \tgood\ttrain\n\ntest/dot/000.png\tdot\ttest\n",
        'object,image,label,split\nx,"train/good/000.png",good,train\nx,test/dot/000.png,dot,test\n',
    ],
)
def test_other_names_separators_and_line_ends(tmp_path: Path, text: str) -> None:
    data = write(tmp_path, text, "utf-8-sig")
    train, test = train_and_test(data, SPEC, Split(), seed=0)
    assert (len(train), train.classes, test.kinds) == (1, ("good",), ("dot",))


def test_paths_alone_are_images_without_labels(tmp_path: Path) -> None:
    data = write(tmp_path, "path\n" + "\n".join(f"train/good/00{number}.png" for number in range(9)))
    assert not has_parts(data)
    assert (len(read_part(data, "train", SPEC)), read_part(data, "train", SPEC).classes) == (9, ())


def test_images_of_a_group_stay_in_one_part(tmp_path: Path) -> None:
    lines = [f"train/good/{number:03}.png,good,{number // 2}" for number in range(12)]
    data = write(tmp_path, "\n".join(["path,label,group", *lines]))
    for seed in range(5):
        train, test = train_and_test(data, SPEC, Split(test=0.4), seed=seed)
        parts = [*train_and_held_out(train, Split(validation=1, calibration=1), seed), test]
        groups = [set(part.groups) for part in parts]
        assert sum(map(len, groups)) == len(set.union(*groups)), groups


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty: its first line names the columns"),
        ("train/good/000.png\n", "line 1: no column named path, file or image"),
        ("path,label\n", "no line below the names"),
        ("path,file\na,b\n", "line 1: two columns hold the path"),
        ("path,label\ntrain/good/000.png,good\ntrain/good/001.png\n", "line 3: 1 values, and 2 columns are named"),
        ("path,label\n,good\n", "line 2: no path"),
        ("path,label\nno.png,good\n\nnot.png,good\n", r"2 files are not there: no.png \(line 2\), not.png \(line 4\)"),
        ("path,mask\ntrain/good/000.png,no.png\n", r"1 files are not there: no.png \(line 2\)"),
        ("path,label\ntrain/good/000.png,good\ntrain/good/001.png,\n", "line 3: no label, and other lines"),
        ("path,group\ntrain/good/000.png,\ntrain/good/001.png,a\n", "line 2: no group, and other lines"),
        ("path,label\ntrain/good/000.png,a\ntrain/good/000.png,a\n", "line 3: train/good/000.png is in line 2 too"),
        ("path,split\ntrain/good/000.png,test\n", "no line has the split train"),
        ('path,label\n"train/good/000.png,good\n', "cannot be read: unexpected end of data"),
    ],
)
def test_a_fault_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    data = write(tmp_path, text)
    with pytest.raises(TrainingError, match=message):
        train_and_test(data, SPEC, Split(), seed=0)


def test_lines_and_columns_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path, FULL.replace("group", "lot") + "train/good/003.png,good,val,e,\n")
    assert main(["data", data, "--side", "16"]) == 0
    out, err = capsys.readouterr()
    assert f"{data}: left out columns (1): lot" in err
    assert f"{data}: left out lines of another split than train and test (1): line 7" in err
    assert "note: defects without a mask: where they are is not known, and not measured (1): test/line/000.png" in out


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not UTF-8"):
        read_part(write(tmp_path, "path,label\nä.png,gut\n", "latin-1"), "train", SPEC)
