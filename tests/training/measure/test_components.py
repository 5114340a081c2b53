import numpy as np
import pytest

from training.data.imageset import ImageSet
from training.measure.components import main_directions, reconstruction_mse

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_directions_are_numpys_singular_vectors(shape: tuple[int, int]) -> None:
    points = RNG.normal(size=shape) * np.linspace(1, 3, shape[1])
    values, basis = main_directions(points, 5)
    _, singular, vectors = np.linalg.svd(points, full_matrices=False)
    np.testing.assert_allclose(values, singular[:5] ** 2 / len(points))
    np.testing.assert_allclose(np.abs(np.sum(basis.T * vectors[:5], axis=1)), 1)
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-9)


def image_set(images: np.ndarray) -> ImageSet:
    return ImageSet(images, np.array([], np.int64), ())


def test_the_error_is_what_the_components_leave_out() -> None:
    """Images of three directions: three components draw them back, two do not."""
    made = np.clip(128 + RNG.normal(size=(200, 3)) @ RNG.normal(size=(3, 20)) * 20, 0, 255).astype(np.uint8)
    images = image_set(made.reshape(200, 4, 5, 1))
    errors = [reconstruction_mse(images, images, rank) for rank in (1, 2, 3, 20)]
    assert errors[0] > errors[1] > 10 * errors[2] > 10 * errors[3]
    assert errors[3] == pytest.approx(0, abs=1e-9)
    whole = np.var(made / 255, axis=0).mean()
    assert errors[0] < whole
