from typing import Any

import numpy as np
import pytest

from app.bundle.latent_map import LatentMap


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    found = {
        "map.mean": np.array([1.0, 2, 3]),
        "map.directions": np.array([[1.0, 0], [0, 2], [0, 0]]),
        "map.points": np.zeros((4, 2), np.float16),
        "map.labels": np.array([0, 1, 1, 0]),
    }
    return {**found, **{f"map.{name}": value for name, value in changes.items()}}


def test_an_embedding_falls_where_its_distance_from_the_mean_points() -> None:
    found = LatentMap.of(arrays(), 3, 2)
    assert found is not None
    np.testing.assert_array_equal(found.at(np.array([[1.0, 2, 3], [2, 3, 9]])), [[0, 0], [1, 2]])
    assert found.arrays().keys() == arrays().keys()


def test_a_bundle_may_have_none_and_labels_may_be_unknown() -> None:
    assert LatentMap.of({"calibration_scores": np.zeros(3)}, 3, 2) is None
    unlabelled = {name: array for name, array in arrays().items() if name != "map.labels"}
    found = LatentMap.of(unlabelled, 3, None)
    assert found is not None
    assert found.labels is None
    assert found.arrays().keys() == unlabelled.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", np.zeros(4)),
        ("directions", np.zeros((3, 3))),
        ("points", np.full((4, 2), np.nan)),
        ("points", np.zeros((4, 2), int)),
        ("labels", np.array([0, 1, 2, 0])),
        ("labels", np.array([0, -1, 1, 0])),
        ("labels", np.array([0, 1])),
        ("labels", np.array([0.0, 1, 1, 0])),
    ],
)
def test_an_array_that_does_not_fit_is_named(name: str, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"^array map.{name}: "):
        LatentMap.of(arrays(**{name: value}), 3, 2)


def test_labels_of_a_model_that_has_none_do_not_fit() -> None:
    with pytest.raises(ValueError, match="labels"):
        LatentMap.of(arrays(), 3, None)
