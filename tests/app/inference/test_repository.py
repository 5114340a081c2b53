from pathlib import Path

import pytest
from support import save_tiny

from app.errors import NotReady, UnknownModel
from app.inference.repository import Repository


def test_an_empty_or_missing_folder_is_not_ready(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        repository = Repository(folder)
        repository.open()
        assert not repository.ready
        assert repository.all() == []
        with pytest.raises(NotReady):
            repository.get(None)


def test_without_a_default_the_first_by_name_answers(tmp_path: Path) -> None:
    for name in ("beta", "alpha"):
        save_tiny(tmp_path, name)
    repository = Repository(tmp_path)
    repository.open()
    assert repository.get(None).name == "alpha@1"
    assert [model.name for model in repository.all()] == ["alpha@1", "beta@1"]


def test_a_default_that_was_refused_is_not_ready(tmp_path: Path) -> None:
    save_tiny(tmp_path, "alpha")
    (save_tiny(tmp_path, "beta") / "head.onnx").unlink()
    repository = Repository(tmp_path, default="beta")
    repository.open()
    assert not repository.ready
    assert list(repository.refused) == ["beta/1"]


def test_what_lies_beside_the_bundles_is_left_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path, "tiny")
    (tmp_path / "README.md").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "tiny/notes").mkdir()
    repository = Repository(tmp_path)
    repository.open()
    assert [model.name for model in repository.all()] == ["tiny@1"]
    assert repository.refused == {}


def test_versions_count_as_numbers(tmp_path: Path) -> None:
    for version in (9, 10):
        save_tiny(tmp_path, version=version)
    repository = Repository(tmp_path)
    repository.open()
    assert repository.get("tiny").name == "tiny@10"
    assert repository.get("tiny@9").name == "tiny@9"
    with pytest.raises(UnknownModel, match="tiny@9, tiny@10"):
        repository.get("tiny@8")
