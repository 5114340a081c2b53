from pathlib import Path

import numpy as np
import pytest
from support import save_tiny

from app.bundle import load
from training.measure.drawn_domains import aurocs, drawn


@pytest.mark.parametrize("shape", [(28, 28, 1), (6, 4, 3), (1, 9, 1)])
def test_they_are_the_same_whenever_they_are_drawn_and_no_two_alike(shape: tuple[int, int, int]) -> None:
    once, again = drawn(shape, 30), drawn(shape, 30)
    assert set(once) == {"noise", "drawn textures"}
    for name, images in once.items():
        assert images.shape == (30, *shape)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, again[name])
        assert len({image.tobytes() for image in images}) == 30
    assert {len(np.unique(image)) for image in drawn((28, 28, 1), 30)["drawn textures"][1::3]} <= {1, 2}, "checks"


def test_a_score_is_measured_against_each_of_them(tmp_path: Path) -> None:
    bundle = load(save_tiny(tmp_path))
    scores = np.array([score.score for score in bundle.anomaly(drawn(bundle.manifest.input.shape)["noise"])])
    found = aurocs(bundle, scores)
    assert found["noise"] == pytest.approx(0.5), "noise against itself"
    assert aurocs(bundle, scores - 1e9)["drawn textures"] == 1.0
