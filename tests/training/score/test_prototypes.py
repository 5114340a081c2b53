import numpy as np
import pytest

from app.bundle.manifest import Graph, Tensor
from app.bundle.session import Session
from training.score.prototypes import Distance, fit, left_out, to_onnx

RNG = np.random.default_rng(0)
DISTANCES: tuple[Distance, ...] = ("cosine", "mahalanobis")


def clouds(each: int, classes: int = 3, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Means some way apart, in a spread that is wide in directions that tell nothing."""
    means = RNG.normal(size=(classes, size))
    labels = np.repeat(np.arange(classes), each)
    spread = RNG.normal(size=(len(labels), size)) * np.r_[np.full(4, 12.0), np.full(size - 4, 0.3)]
    return (means[labels] + spread + 5).astype(np.float32), labels


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_nearest_mean_is_told_wherever_the_points_lie(distance: Distance) -> None:
    points = np.array([[1, 0.1], [1, -0.1], [-1, 0.1], [-1, -0.1]], np.float32) + 100
    learnt = fit(points, np.array([0, 0, 1, 1]), distance)
    found = learnt.logits(np.array([[100.4, 103], [99.7, 96]], np.float32))
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_the_cosine_is_a_cosine() -> None:
    points = np.array([[3, 0], [0, 4], [-1, -1]], np.float32)
    learnt = fit(points, np.arange(3), "cosine")
    x, centre = np.array([1.0, 2.0]), points.mean(axis=0)
    cosines = [(x - centre) @ (p - centre) / np.linalg.norm(x - centre) / np.linalg.norm(p - centre) for p in points]
    np.testing.assert_allclose(learnt.logits(x[None].astype(np.float32))[0], 10 * np.array(cosines), rtol=1e-5)


def test_many_points_give_the_covariance_its_due() -> None:
    """With so many, hardly anything is shrunk: the weights point where the textbook's discriminant does."""
    points, labels = clouds(3000, size=6)
    learnt = fit(points, labels, "mahalanobis")
    means = np.stack([points[labels == label].mean(axis=0) for label in range(3)])
    covariance = np.cov((points - means[labels]).T, bias=True)
    wanted = np.linalg.solve(covariance, (means - means.mean(axis=0)).T)
    for found, exact in zip(learnt.weight.T, wanted.T, strict=True):
        assert found @ exact / np.linalg.norm(found) / np.linalg.norm(exact) > 0.999


def test_the_common_spread_is_what_mahalanobis_has_over_the_cosine() -> None:
    points, labels = clouds(6)
    right = {each: (left_out(points, labels, each).argmax(axis=1) == labels).mean() for each in DISTANCES}
    assert right["mahalanobis"] > right["cosine"]


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_is_left_out_has_no_say(distance: Distance) -> None:
    points, labels = clouds(4)
    logits = left_out(points, labels, distance)
    for index in (0, 5, 11):
        rest = np.delete(np.arange(len(points)), index)
        alone = fit(points[rest], labels[rest], distance).logits(points[index : index + 1])
        np.testing.assert_allclose(logits[index], alone[0], rtol=1e-4, atol=1e-4)


def test_of_many_points_whole_parts_are_left_out_and_every_class_stays() -> None:
    points, labels = clouds(70)
    assert np.isfinite(left_out(points, labels, "mahalanobis")).all()


def test_every_block_counts_alike_and_one_without_variance_not_at_all() -> None:
    points, labels = clouds(5, size=8)
    alone = fit(points, labels, "cosine")
    loud = np.concatenate([points, np.full((len(points), 3), 7, np.float32)], axis=1)
    joined = fit(loud, labels, "cosine", blocks=(8, 3))
    requested = np.concatenate([points, RNG.normal(size=(len(points), 3)).astype(np.float32)], axis=1)
    np.testing.assert_allclose(joined.logits(requested), alone.logits(points), atol=1e-4)
    twice = fit(np.concatenate([points, 1000 * points], axis=1), labels, "cosine", blocks=(8, 8))
    np.testing.assert_allclose(
        twice.logits(np.concatenate([points, 1000 * points], axis=1)), alone.logits(points), atol=1e-4
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("opset", [18, 20])
def test_the_graph_gives_what_the_formula_gives(distance: Distance, opset: int) -> None:
    points, labels = clouds(5)
    learnt = fit(points, labels, distance)
    taken = Tensor(name="features", dtype="float32", shape=(-1, 40))
    graph = Graph(file="head.onnx", input=taken, outputs=(Tensor(name="logits", dtype="float32", shape=(-1, 3)),))
    session = Session(to_onnx(learnt, graph, opset), graph, "head.onnx", threads=1)
    requested = np.concatenate(
        [points, learnt.centre[None]]
    )  # the middle has no direction: it must not divide by nothing
    np.testing.assert_allclose(session.run(requested)["logits"], learnt.logits(requested), rtol=1e-4, atol=1e-4)
