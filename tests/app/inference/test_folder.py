from pathlib import Path

import pytest
from support import save_tiny

from app.inference.folder import FileState, Key, Watch, scan


def laid(models: Path, key: Key) -> FileState:
    return scan(models)[key]


def whole(number: int = 0) -> FileState:
    return (("manifest.json", 1, 10, number),)


def test_every_version_is_found_and_what_is_none_is_left_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path, "tiny")
    (tmp_path / "tiny/notes").mkdir()
    (tmp_path / "tiny/2").mkdir()
    (tmp_path / "tiny/3").touch()
    (tmp_path / "README.md").touch()
    states = scan(tmp_path)
    assert {key: bool(state) for key, state in states.items()} == {
        ("tiny", 1): True,
        ("tiny", 2): False,
        ("tiny", 3): False,
    }


@pytest.mark.parametrize("change", ["written", "replaced", "added", "removed"])
def test_any_change_of_a_file_is_a_change_of_the_folder(tmp_path: Path, change: str) -> None:
    folder = save_tiny(tmp_path, "tiny")
    before = laid(tmp_path, ("tiny", 1))
    assert laid(tmp_path, ("tiny", 1)) == before
    card = folder / "head.onnx"
    data = card.read_bytes()
    if change == "written":
        card.write_bytes(data + b"x")
    elif change == "replaced":  # by one of the same size
        (folder / "new").write_bytes(data)
        (folder / "new").rename(card)
    elif change == "added":
        (folder / "new").touch()
    else:
        card.unlink()
    assert laid(tmp_path, ("tiny", 1)) != before


def test_what_was_there_at_the_start_is_not_due() -> None:
    watch = Watch({("a", 1): whole()})
    for _ in range(3):
        assert watch.due({("a", 1): whole()}) == []


def test_a_version_is_due_once_when_it_lies_still() -> None:
    watch = Watch({})
    looks = [whole(0), whole(1), whole(2), whole(2), whole(2)]
    assert [watch.due({("a", 1): look}) for look in looks] == [[], [], [], [("a", 1)], []]


def test_a_version_that_changes_is_due_again() -> None:
    watch = Watch({("a", 1): whole(0)})
    looks = [whole(1), whole(1), whole(1), whole(0), whole(0)]
    assert [bool(watch.due({("a", 1): look})) for look in looks] == [False, True, False, False, True]


def test_a_version_that_went_and_came_back_as_it_was_is_due_again() -> None:
    watch = Watch({("a", 1): whole()})
    assert watch.due({}) == []
    assert watch.due({("a", 1): whole()}) == []
    assert watch.due({("a", 1): whole()}) == [("a", 1)]


def test_a_folder_without_a_manifest_is_not_due_however_long_it_lies() -> None:
    watch = Watch({})
    copied: FileState = (("encoder.onnx", 1, 10, 0),)
    assert [watch.due({("a", 1): copied}) for _ in range(3)] == [[]] * 3


def test_the_highest_of_several_is_first() -> None:
    watch = Watch({})
    now = {("b", 1): whole(), ("a", 9): whole(), ("a", 10): whole()}
    watch.due(now)
    assert watch.due(now) == [("a", 10), ("a", 9), ("b", 1)]
