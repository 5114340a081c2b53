import os
from pathlib import Path

import pytest

from app.errors import CannotScore
from app.score.batches import read_file
from app.score.paths import find


def names(folder: Path) -> list[str]:
    images, problems = find([str(folder)])
    assert not problems
    return [str(Path(path).relative_to(folder)) for path in images]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_are_walked_in_order_and_images_known_by_their_suffix(tmp_path: Path) -> None:
    kept = ["1.png", "10.JPG", "2.jpeg", "a/z.Tiff", "a/z/1.webp", "b.gif", "c.png/1.bmp", "d.tif"]
    touch(*(tmp_path / name for name in [*kept, "a/notes.txt", "png", "e.npy"]))
    assert names(tmp_path) == ["1.png", "10.JPG", "2.jpeg", "a/z/1.webp", "a/z.Tiff", "b.gif", "c.png/1.bmp", "d.tif"]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "in/1.png", tmp_path / "outside/2.png")
    (tmp_path / "in/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to(tmp_path / "in/self")
    (tmp_path / "in/other").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/3.png").symlink_to(tmp_path / "outside/2.png")
    assert names(tmp_path / "in") == ["1.png", "3.png", "other/2.png"]


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    """Not once for each of the ways that lead there: their number grows with the factorial of the folders'."""
    folders = [tmp_path / letter for letter in "abcdef"]
    touch(*(folder / "1.png" for folder in folders))
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    (tmp_path / "a/first").symlink_to(tmp_path / "f")
    assert names(tmp_path) == [f"{folder.name}/1.png" for folder in folders]


def test_a_link_to_a_file_is_one_more_image_and_a_broken_one_is_a_problem_later(tmp_path: Path) -> None:
    touch(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "1.png")
    (tmp_path / "3.png").symlink_to(tmp_path / "3.png")
    (tmp_path / "4.png").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path) == ["1.png", "2.png", "3.png", "4.png"]
    for name in ("3.png", "4.png"):
        with pytest.raises(OSError, match=r"symbolic links|No such file"):
            read_file(str(tmp_path / name), 10**6)


def test_a_path_is_as_it_was_given_and_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "photos/a.png", tmp_path / "photos/named-otherwise")
    monkeypatch.chdir(tmp_path)
    assert find(["photos/", "./photos/a.png", "photos/named-otherwise"])[0] == [
        "photos/a.png",
        "photos/named-otherwise",
    ]
    assert find(["."])[0] == ["photos/a.png"]
    assert find([str(tmp_path / "photos")])[0] == [str(tmp_path / "photos/a.png")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_a_problem_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path / "1.png", tmp_path / "locked/2.png")
    (tmp_path / "locked").chmod(0)
    images, [problem] = find([str(tmp_path)])
    (tmp_path / "locked").chmod(0o700)
    assert images == [str(tmp_path / "1.png")]
    assert (problem.path, problem.kind) == (str(tmp_path / "locked"), "unreadable")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "1.png")
    with pytest.raises(CannotScore, match="none"):
        find([str(tmp_path), str(tmp_path / "none")])
    (tmp_path / "1.png").unlink()
    with pytest.raises(CannotScore, match=r"no image \("):
        find([str(tmp_path)])
