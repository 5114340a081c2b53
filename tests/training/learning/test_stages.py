"""Which function trains in which mode."""

import pytest

from training.learning.stages import METHODS
from training.recipe import MODES, AdaptMode, LabelMode, LinearMode


def test_every_mode_that_learns_the_targets_labels_has_a_function() -> None:
    by_labels = {
        name
        for name, kind in MODES.items()
        if issubclass(kind, LabelMode | LinearMode) and not issubclass(kind, AdaptMode)
    }
    assert set(METHODS) == by_labels


@pytest.mark.parametrize(("mode", "module"), [("gradual", "gradual"), ("episodic", "episodes"), ("full", "finetune")])
def test_a_mode_is_found_in_the_file_of_its_name(mode: str, module: str) -> None:
    assert METHODS[mode].__module__ == f"training.learning.{module}"
