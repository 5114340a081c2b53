import numpy as np

from training.score.latent_map import fit


def test_labels_choose_the_plane_that_tells_them_apart() -> None:
    """Along the first axis the codes spread most, and the labels do not."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    codes = rng.normal(size=(900, 6)) * [20, 1, 1, 1, 1, 1]
    codes[:, 3] += 5 * (labels == 1)
    codes[:, 4] += 5 * (labels == 2)
    by_label, by_spread = fit(codes, labels), fit(codes, np.array([]))
    assert np.abs(by_label.directions[[3, 4]]).sum() > 10 * np.abs(by_label.directions[0]).sum()
    assert np.abs(by_spread.directions[0]).max() > 0.99
    assert by_spread.labels is None
    for found in (by_label, by_spread):
        np.testing.assert_allclose(found.directions.T @ found.directions, np.eye(2), atol=1e-5)
        assert found.points.shape == (500, 2)
    assert by_label.labels is not None
    places = by_label.points.astype(np.float32)
    means = [places[by_label.labels == label].mean(axis=0) for label in range(3)]
    assert min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 3


def test_a_point_is_where_its_code_falls() -> None:
    codes = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    found = fit(codes, np.arange(40) % 4)
    nearest = np.linalg.norm(found.at(codes)[:, None] - found.points[None].astype(np.float32), axis=2).min(axis=1)
    assert nearest.max() < 0.01
    again = fit(codes, np.arange(40) % 4)
    np.testing.assert_array_equal(found.points, again.points)


def test_few_labels_and_short_codes_fill_what_is_left() -> None:
    rng = np.random.default_rng(2)
    codes = rng.normal(size=(60, 4))
    codes[:30, 2] += 9
    two = fit(codes, np.repeat([0, 1], 30))
    assert abs(two.directions[2, 0]) > 0.9
    np.testing.assert_allclose(two.directions.T @ two.directions, np.eye(2), atol=1e-5)
    single = fit(rng.normal(size=(20, 1)), np.array([]))
    assert single.directions.shape == (1, 2)
    assert (single.points[:, 1] == 0).all()
