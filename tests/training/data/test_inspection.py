import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import draw_inspection, spec

from app.bundle import load as load_bundle
from training.__main__ import main
from training.data.imageset import ImageSet
from training.data.inspection import in_words, marked, marked_parts, settled, usual_sound
from training.data.read import has_parts
from training.data.splits import part_to_measure, train_and_test
from training.errors import TrainingError
from training.recipe import Recipe, Split, load

SPEC = spec(32, 32)


def side_by_side(folder: Path, sound: str = "good") -> Path:
    draw_inspection(folder / "parts", sound=20)
    for kind, name in (("good", sound), ("dot", "dot"), ("line", "line")):
        shutil.move(folder / "parts" / ("train" if kind == "good" else "test") / kind, folder / name)
    shutil.move(folder / "parts/ground_truth", folder / "ground_truth")
    shutil.rmtree(folder / "parts")
    return folder


def test_the_training_part_is_sound_and_the_test_part_keeps_its_kinds(tmp_path: Path) -> None:
    train, test = train_and_test(str(draw_inspection(tmp_path)), SPEC, Split(), seed=0)
    assert (train.classes, train.sound, len(train)) == (("good",), "good", 12)
    assert (test.classes, test.sound, test.kinds) == (("dot", "good", "line"), "good", ("dot", "line"))
    assert np.bincount(test.labels).tolist() == [4, 4, 4]
    assert [mask.file is not None for mask in test.masks] == [label != 1 for label in test.labels]
    assert train.masks == ()
    assert in_words(train, test, parted=True) == (
        "taken for: inspection; good are the sound images, in parts of their own; images with defects: 8 (dot, line); "
        "masks of them: 8"
    )


@pytest.mark.parametrize("name", ["good", "OK", "Normal", "defect-free"])
def test_side_by_side_all_defects_are_tested_on_and_none_is_learnt(tmp_path: Path, name: str) -> None:
    folder = str(side_by_side(tmp_path, name))
    train, test = train_and_test(folder, SPEC, Split(sound=name), seed=0)
    assert (train.classes, len(train)) == ((name,), 16)
    assert sorted(test.classes[label] for label in test.labels) == sorted(["dot"] * 4 + ["line"] * 4 + [name] * 4)
    assert not set(train.names) & set(test.names)
    assert sum(mask.file is not None for mask in test.masks) == 8
    assert usual_sound(("dot", name)) == name


def test_side_by_side_is_to_classify_unless_the_recipe_learns_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(side_by_side(tmp_path))
    train, test = train_and_test(folder, SPEC, Split(), seed=0)
    assert train.classes == test.classes == ("dot", "good", "line")
    assert "set split.sound=good" in in_words(train, test, parted=False)
    targets = [f"source={folder}", f"target={folder}"]
    assert settled(load("defects", targets)).split.sound is None
    one_class = settled(load("defects", [*targets, "transfer.mode=decoder"]))
    assert one_class.split.sound == "good"
    assert (
        "good is taken as the sound class; dot, line are kinds of defect, and only tested on" in capsys.readouterr().err
    )
    named = settled(load("defects", [*targets, "split.sound=dot"]))
    assert (named.transfer.mode, named.split.sound) == ("decoder", "dot")


def parted(folder: Path) -> Path:
    return draw_inspection(folder)


def one_folder(folder: Path) -> Path:
    draw_inspection(folder / "parts")
    shutil.move(folder / "parts/train/good", folder / "images")
    shutil.rmtree(folder / "parts")
    return folder


def flat(folder: Path) -> Path:
    return one_folder(folder) / "images"


def table(folder: Path) -> Path:
    draw_inspection(folder)
    lines = ["path,label,split"] + [
        f"{path.relative_to(folder)},good,train" for path in (folder / "train").rglob("*.png")
    ]
    lines += [f"{path.relative_to(folder)},{path.parent.name},test" for path in (folder / "test").rglob("*.png")]
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


@pytest.mark.parametrize("lay_out", [parted, one_folder, flat, table])
def test_without_classes_to_learn_a_recipe_learns_no_labels(
    tmp_path: Path, lay_out: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(lay_out(tmp_path))
    recipe = settled(load("defects", [f"source={folder}", f"target={folder}"]))
    assert recipe.transfer.mode == "decoder"
    assert recipe.split.sound == {"one_folder": "images", "flat": None}.get(lay_out.__name__, "good")
    assert "there is nothing to classify: transfer.mode=decoder is set" in capsys.readouterr().err
    assert settled(recipe) == recipe


def test_the_user_names_a_class_that_is_not_there(tmp_path: Path) -> None:
    for folder in (side_by_side(tmp_path / "a"), draw_inspection(tmp_path / "b")):
        with pytest.raises(TrainingError, match="no class fine to take as the sound one; it has"):
            train_and_test(str(folder), SPEC, Split(sound="fine"), seed=0)
    with pytest.raises(TrainingError, match="its training part has no images of dot, the sound class"):
        train_and_test(str(tmp_path / "b"), SPEC, Split(sound="dot"), seed=0)


def labelled(labels: list[int], *classes: str, groups: tuple[str, ...] = ()) -> ImageSet:
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ImageSet(images, np.array(labels, np.int64), classes, groups=groups)


def test_a_flat_training_part_beside_named_test_folders_is_sound() -> None:
    plain = ImageSet(np.zeros((3, 1, 1, 1), np.uint8), np.array([], np.int64), ())
    train, test = marked_parts(plain, labelled([0, 1], "crack", "good"), None, "here")
    assert (train.classes, train.labels.tolist(), test.kinds) == (("good",), [0, 0, 0], ("crack",))
    train, test = marked_parts(plain, labelled([0, 1], "crack", "hole"), None, "here")
    assert (train.sound, test.sound) == (None, None), "no name says which is sound"


def test_defects_alone_in_the_test_part_are_defects() -> None:
    _, test = marked_parts(labelled([0, 0], "good"), labelled([0, 0], "crack"), None, "here")
    assert test.defective.all()
    assert test.kinds == ("crack",)
    assert test.without_defects().classes == ("good",)


def test_two_classes_to_learn_are_not_for_inspection() -> None:
    parts = labelled([0, 1], "cat", "good"), labelled([0, 1, 2], "cat", "good", "owl")
    assert marked_parts(*parts, None, "here") == parts
    assert marked(parts[0], None, "here").sound is None


def test_a_group_with_a_defect_is_only_tested_on(tmp_path: Path) -> None:
    folder = side_by_side(tmp_path)
    rules = Split(sound="good", groups=r"(\d)\.png")  # the defects have the numbers 0 to 3
    train, test = train_and_test(str(folder), SPEC, rules, seed=0)
    assert not {name for name in train.names if name[-5] in "0123"}
    assert {name for name in test.names if name.startswith("good")} >= {f"good/00{number}.png" for number in range(4)}


def test_what_a_bundle_was_trained_on_is_split_again_as_in_training(models: Path, tmp_path: Path) -> None:
    folder = str(side_by_side(tmp_path / "set"))
    manifest = load_bundle(models / "tiny/1").manifest
    rules = Split(sound="good")
    train, test = train_and_test(folder, manifest.input, rules, seed=3)
    recipe = Recipe(name="x", title="x", source=folder, target=folder, seed=3, split=rules)
    stated = {"recipe": recipe.model_dump_json(), "data": {"target/train": train.fingerprint()}}
    manifest = manifest.model_copy(update={"provenance": manifest.provenance.model_copy(update=stated)})
    measured, known = part_to_measure(folder, "test", manifest)
    assert measured.names == test.names
    assert known is not None
    assert known.names == train.names


def test_the_command_says_what_it_took_a_folder_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_inspection(tmp_path)
    assert has_parts(str(tmp_path))
    assert main(["data", str(tmp_path), "--side", "16"]) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()[1:5]] == [
        ["class", "train", "test", "masks"],
        ["good", "12", "4", "0"],
        ["dot", "0", "4", "4"],
        ["line", "0", "4", "4"],
    ]
    assert "note: few sound images (12): where a fifth is held out to set the threshold, 2 images bear" in out
    assert "in the test part only" not in out
    assert err == ""


def test_the_command_takes_the_sound_class_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(side_by_side(tmp_path)), "--side", "16", "--sound", "line"]) == 0
    assert "inspection; line are the sound images, of which a part is held out" in capsys.readouterr().out
    assert main(["data", str(tmp_path), "--sound", "none"]) == 2


def test_a_bundle_remembers_the_sound_class_that_was_named(models: Path, tmp_path: Path) -> None:
    folder = str(side_by_side(tmp_path / "set", "fine"))
    manifest = load_bundle(models / "tiny/1").manifest
    recipe = Recipe(name="x", title="x", source=folder, target=folder, split=Split(sound="fine"))
    stated = manifest.provenance.model_copy(update={"recipe": recipe.model_dump_json()})
    measured, _ = part_to_measure(folder, "test", manifest.model_copy(update={"provenance": stated}))
    assert (measured.sound, measured.kinds) == ("fine", ("dot", "line"))
    assert part_to_measure(folder, "test", manifest)[0].sound is None
    assert part_to_measure(folder, "test", manifest, sound="fine")[0].sound == "fine"


def nested(folder: Path, name: str) -> str:
    for kind in ("dot", "line"):
        shutil.copytree(draw_inspection(folder / "drawn") / "test" / kind, folder / "set" / name / kind)
    return str(folder / "set")


def test_folders_inside_the_only_folder_may_be_classes(tmp_path: Path) -> None:
    data = nested(tmp_path, "photos")
    with pytest.raises(TrainingError, match=r"inside one folder, photos \(dot, line\): if these are the classes, name"):
        train_and_test(data, SPEC, Split(), seed=0)
    train, _ = train_and_test(data, SPEC, Split(sound="photos"), seed=0)
    assert (train.classes, train.sound) == (("photos",), "photos")


def test_folders_inside_a_folder_of_sound_images_have_its_class(tmp_path: Path) -> None:
    train, test = train_and_test(nested(tmp_path, "good"), SPEC, Split(), seed=0)
    assert (train.sound, len(train) + len(test)) == ("good", 8)


def test_masks_of_images_in_inner_folders_lie_in_such(tmp_path: Path) -> None:
    folder = draw_inspection(tmp_path)
    for place, ending in (("test", ""), ("ground_truth", "_mask")):
        for number in (0, 1):
            inner = folder / place / "dot" / f"line-{number}"
            inner.mkdir()
            shutil.move(folder / place / "dot" / f"00{number}{ending}.png", inner / f"same{ending}.png")
    _, test = train_and_test(str(folder), SPEC, Split(), seed=0)
    dots = [(name, mask.file) for name, mask in zip(test.names, test.masks, strict=True) if name.startswith("dot")]
    assert [name for name, _ in dots] == ["dot/002.png", "dot/003.png", "dot/line-0/same.png", "dot/line-1/same.png"]
    assert [file for _, file in dots] == [
        folder / "ground_truth" / name.replace(".png", "_mask.png") for name, _ in dots
    ]
