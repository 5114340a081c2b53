from pathlib import Path

import pytest
from support import save_tiny

from training.errors import TrainingError
from training.shots.bases import bundles_in


def test_a_bundle_a_model_and_a_folder_of_models_are_told_apart(tmp_path: Path) -> None:
    first, second = save_tiny(tmp_path, "one"), save_tiny(tmp_path, "one")
    other = save_tiny(tmp_path, "other")
    assert bundles_in(first) == [first]
    assert bundles_in(tmp_path / "one") == [second]
    assert bundles_in(tmp_path) == [second, other]


def test_what_holds_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nowhere: no such path; give a bundle"):
        bundles_in(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="no bundle in it"):
        bundles_in(tmp_path)
