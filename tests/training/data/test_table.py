import json
from dataclasses import replace
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


SEVERAL = """path,label,split
train/good/000.png,dot|line,train
train/good/001.png,,train
train/good/002.png, line ,train
train/good/003.png,?,train
test/dot/000.png,dot,test
"""


def as_json(text: str) -> str:
    """The same rows as JSON lines: labels as lists, and null where nobody has looked."""
    heads, *lines = (line.split(",") for line in text.split())
    made = []
    for line in lines:
        row = dict(zip(heads, line, strict=True))
        labels = [label for label in row["label"].split("|") if label]
        made.append(json.dumps(row | {"label": None if labels == ["?"] else labels}))
    return "\n".join(made)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_an_image_may_have_several_labels_or_none(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_inspection(tmp_path)
    file = tmp_path / name
    file.write_text(SEVERAL if name == "list.csv" else as_json(SEVERAL.replace(" ", "")))
    train, test = train_and_test(str(file), SPEC, Split(), seed=0)
    assert f"{file}: left out lines without a label (?) (1): line {5 if name == 'list.csv' else 4}" in (
        capsys.readouterr().err
    )
    assert train.classes == test.classes == ("dot", "line")
    assert train.names == ("train/good/000.png", "train/good/001.png", "train/good/002.png")
    assert train.several is not None
    assert train.several.tolist() == [[True, True], [False, False], [False, True]]
    assert test.several is not None
    assert test.several.tolist() == [[True, False]]
    assert (len(train.labels), train.labelled, train.sound) == (0, True, None)
    assert train.fingerprint() != replace(train, several=~train.several).fingerprint()
    assert train.take(np.array([2])).several == pytest.approx(np.array([[False, True]]))


def test_json_lines_hold_the_same_as_a_csv(tmp_path: Path) -> None:
    draw_inspection(tmp_path)
    (tmp_path / "list.csv").write_text(FULL)
    heads, *lines = (line.split(",") for line in FULL.split())
    rows = [dict(zip(heads, line, strict=True)) for line in lines]
    objects = [{key: value or None for key, value in row.items()} for row in rows]
    (tmp_path / "list.ndjson").write_text("\n\n".join(map(json.dumps, objects)))
    (csv_train, csv_test), (json_train, json_test) = (
        train_and_test(str(tmp_path / name), SPEC, Split(), seed=0) for name in ("list.csv", "list.ndjson")
    )
    for one, other in ((csv_train, json_train), (csv_test, json_test)):
        assert (one.names, one.classes, one.groups, one.masks) == (
            other.names,
            other.classes,
            other.groups,
            other.masks,
        )
        assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"empty: write an object in each line"),
        ('{"path": "train/good/000.png"}\n{"path"', "line 2: not JSON: .*: write one object in each line"),
        ('["train/good/000.png"]', "line 1: not an object"),
        ('\n{"label": "good"}', "line 2: no path"),
        ('{"path": 7}', "line 1: path: 7: must be a string"),
        ('{"path": "a", "label": {}}', r"line 1: label: {}: must be a string, or a list of strings"),
        ('{"path": "a", "label": ["b", 1]}', "line 1: label: 1: not a name"),
        ('{"path": "a", "label": ["b|c"]}', r"line 1: label: b\|c: not a name"),
        ('{"path": "a", "class": "b", "label": "b"}', "line 1: two keys hold the label"),
        ('{"path": "a.png", "label": ["b", "c"]}', r"1 files are not there: a.png \(line 1\)"),
        ('{"path": "a.png", "label": ["b"]}', r"its lines name 1 labels \(b\), and two are needed"),
        ('{"path": "a.png", "target": 0.5}', "line 1: target: regression is not offered"),
        ('{"path": "a.png"}\n{"path": "a.png"}', "line 2: a.png is in line 1 too"),
    ],
)
def test_a_fault_in_json_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    draw_inspection(tmp_path)
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(TrainingError, match=message):
        train_and_test(str(tmp_path / "list.jsonl"), SPEC, Split(), seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,target\na.png,1\n", "line 1: target: regression is not offered.*call it label"),
        ("path,Value\na.png,1\n", "line 1: Value: regression is not offered"),
        (
            "path,label\n" + "".join(f"{n}.png,{1 + n % 11 / 8}\n" for n in range(40)),
            "line 3: label 1.125: the labels are 11 different numbers, and regression is not offered",
        ),
        (
            "path,label\n" + "".join(f"{n}.png,{n}\n" for n in range(40)),
            "line 2: label 0: the labels are 40 different numbers, and regression is not offered",
        ),
    ],
)
def test_numbers_to_predict_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_part(write(tmp_path, text), "train", SPEC)


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("label", [str(number % 20) for number in range(60)]),  # numbers of classes, each of several images
        ("label", [f"{0.5 + number % 3 / 2}" for number in range(60)]),  # grits, say
        ("target,label", [f"{number},{'ab'[number % 2]}" for number in range(60)]),
    ],
)
def test_numbers_that_name_classes_are_labels(tmp_path: Path, head: str, labels: list[str]) -> None:
    draw_inspection(tmp_path, sound=60)
    files = sorted((tmp_path / "train/good").glob("*.png"))[: len(labels)]
    (tmp_path / "list.csv").write_text(
        f"path,{head}\n"
        + "".join(f"train/good/{file.name},{label}\n" for file, label in zip(files, labels, strict=True))
    )
    found = read_part(str(tmp_path / "list.csv"), "train", SPEC)
    assert set(found.classes) == {label.rpartition(",")[2] for label in labels[: len(files)]}


def test_a_sound_class_is_of_images_of_one_label(tmp_path: Path) -> None:
    data = write(tmp_path, SEVERAL)
    with pytest.raises(TrainingError, match=r"split\.sound=dot is for images of one label each"):
        train_and_test(data, SPEC, Split(sound="dot"), seed=0)
