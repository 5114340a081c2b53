import numpy as np
import pytest
import torch
from torch.nn import functional

from training.learning import linear
from training.learning.linear import PENALTIES, centre_and_scale, choose, fit, head_on
from training.networks.head import reading


def clouds(count: int, apart: float, seed: int = 0, size: int = 20, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Classes that differ in the first few numbers; the others are noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    points = rng.normal(5, 1, (count, size)).astype(np.float32)
    points[np.arange(count), labels] += apart
    return points, labels


def problem(points: np.ndarray, labels: np.ndarray, classes: int = 3) -> linear.Problem:
    centred, _, _ = centre_and_scale(points, [points.shape[1]], 0.0)
    return linear.Problem(points=centred, labels=torch.from_numpy(labels), weights=None, classes=classes)


def accuracy(head: torch.nn.Module, points: np.ndarray, labels: np.ndarray) -> float:
    return float((head(torch.from_numpy(points)).argmax(1).numpy() == labels).mean())


def test_the_gradient_is_zero_where_the_fit_ends() -> None:
    posed = problem(*clouds(90, 1.5))
    layer = fit(posed, 0.01).requires_grad_()
    (posed.loss(layer) + 0.005 * layer[:, :-1].square().sum()).backward()
    assert layer.grad is not None
    assert layer.grad.abs().max() < 1e-3


def test_the_loss_of_points_in_parts_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = clouds(50, 1.0)
    posed, layer = problem(points, labels), torch.randn(3, 21)
    _, mean, factor = centre_and_scale(points, [points.shape[1]], 0.0)
    x = torch.cat([(torch.from_numpy(points) - mean) * factor, torch.ones(50, 1)], dim=1)
    expected = functional.cross_entropy(x @ layer.T, posed.labels)
    torch.testing.assert_close(posed.loss(layer), expected)
    monkeypatch.setattr("training.data.storage._CHUNK", 7 * 80)
    torch.testing.assert_close(posed.loss(layer), expected)


def test_the_head_takes_points_as_they_are_wherever_they_lie() -> None:
    points, labels = clouds(300, 3.0)
    fresh, truth = clouds(300, 3.0, seed=1)
    for shift, scale in ((0.0, 1.0), (-40.0, 0.01)):
        head = head_on(points * scale + shift, labels, classes=3)
        assert accuracy(head, (fresh * scale + shift).astype(np.float32), truth) > 0.9


def test_each_map_counts_a_share_of_the_map_above_whatever_its_size_and_length() -> None:
    points, _ = clouds(200, 1.0)
    points[:, 4:] *= 100
    for share, parts in ((0.5, (1 / 7, 2 / 7, 4 / 7)), (0.0, (0, 0, 1))):
        scaled, mean, factor = centre_and_scale(points, [4, 6, 10], share)
        lengths = [float(np.square(part).sum(axis=1).mean()) for part in np.split(scaled, [4, 10], axis=1)]
        assert lengths == pytest.approx([linear._LENGTH**2 * part for part in parts], rel=1e-3)
        torch.testing.assert_close(torch.from_numpy(scaled), (torch.from_numpy(points) - mean) * factor)


@pytest.mark.parametrize("lower", [True, False])
def test_the_map_that_tells_classes_apart_counts(lower: bool) -> None:
    noise, _ = clouds(60, 0.0, seed=3, size=40)
    points, labels = clouds(60, 3.0, size=10)
    fresh, truth = clouds(600, 3.0, seed=1, size=10)
    fresh_noise, _ = clouds(600, 0.0, seed=4, size=40)
    parts, fresh_parts = (points, noise), (fresh, fresh_noise)
    if not lower:
        parts, fresh_parts = parts[::-1], fresh_parts[::-1]
    sizes = [part.shape[1] for part in parts]
    joined, fresh_joined = np.concatenate(parts, axis=1), np.concatenate(fresh_parts, axis=1)
    head = head_on(joined, labels, classes=3, maps=sizes)
    alone = head_on(joined[:, sizes[0] :], labels, classes=3)
    right = accuracy(head, fresh_joined, truth)
    assert right > accuracy(alone, fresh_joined[:, sizes[0] :], truth) + (0.3 if lower else -0.01)


def test_noise_is_penalised_more_than_what_tells_classes_apart() -> None:
    loud, clear = (choose(problem(*drawn)).penalty for drawn in (clouds(60, 0.2), clouds(600, 4.0)))
    assert loud > 10 * clear


def test_the_chosen_penalty_is_better_than_none_on_few_labels() -> None:
    points, labels = clouds(30, 1.5, size=200)
    fresh, truth = clouds(3000, 1.5, seed=1, size=200)
    posed = problem(points, labels)
    chosen = choose(posed).penalty
    _, mean, factor = centre_and_scale(points, [points.shape[1]], 0.0)

    def loss(penalty: float) -> float:
        x = (torch.from_numpy(fresh) - mean) * factor
        layer = fit(posed, penalty)
        return float(
            functional.cross_entropy(functional.linear(x, layer[:, :-1], layer[:, -1]), torch.from_numpy(truth))
        )

    assert loss(chosen) < loss(PENALTIES[-1])


def test_one_image_of_a_class_leaves_nothing_to_choose_by() -> None:
    points, labels = clouds(31, 3.0)
    labels[-1] = 3
    assert choose(problem(points, labels, classes=4)) == linear._USUAL


def test_a_rare_class_counts_as_much_if_weighted() -> None:
    points, labels = clouds(400, 0.7, classes=2)
    kept = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:10]])
    points, labels = points[kept], labels[kept]
    counts = np.bincount(labels)
    weights = torch.from_numpy(len(labels) / (2 * counts)).float()
    fresh, truth = clouds(2000, 0.7, seed=1, classes=2)
    rare = truth == 1
    plain, weighted = head_on(points, labels, classes=2), head_on(points, labels, classes=2, weights=weights)
    assert accuracy(weighted, fresh[rare], truth[rare]) > accuracy(plain, fresh[rare], truth[rare]) + 0.1
    assert reading(weighted).weight.shape == (2, 20)


def several_of(points: np.ndarray, often: float, seed: int = 0) -> np.ndarray:
    """(N, 2) bool: labels of which the first is of the first number, and the second of the second and noise."""
    noise = np.random.default_rng(seed).normal(0, 0.5, len(points))
    return np.stack([points[:, 0] > 5, points[:, 1] + noise > 5 + often], axis=1)


def test_several_labels_are_a_logistic_regression_each() -> None:
    """A layer for both has the rows that each label has by itself, at the same penalty."""
    points, _ = clouds(200, 0.0)
    truth = torch.from_numpy(several_of(points, 0.5)).float()
    centred, _, _ = centre_and_scale(points, [points.shape[1]], 0.0)
    both = fit(linear.Problem(points=centred, labels=truth, weights=None, classes=2), 0.01)
    x = torch.cat([torch.from_numpy(centred), torch.ones(200, 1)], dim=1)
    loss = functional.binary_cross_entropy_with_logits(x @ both.T, truth, reduction="none").mean(dim=0).sum()
    torch.testing.assert_close(linear.Problem(points=centred, labels=truth, weights=None, classes=2).loss(both), loss)
    for label in range(2):
        alone = linear.Problem(points=centred, labels=truth[:, [label]], weights=None, classes=1)
        torch.testing.assert_close(fit(alone, 0.01)[0], both[label], atol=0.02, rtol=0.02)


def test_a_head_of_several_labels_is_right_of_other_points() -> None:
    points, _ = clouds(400, 0.0)
    fresh, _ = clouds(400, 0.0, seed=1)
    head = head_on(points, several_of(points, 0.5), classes=2)
    right = (head(torch.from_numpy(fresh)) > 0).numpy() == several_of(fresh, 0.5, seed=1)
    assert right[:, 0].mean() > 0.93
    assert right[:, 1].mean() > 0.75


def test_noise_takes_a_larger_penalty_where_labels_are_several() -> None:
    points, _ = clouds(120, 0.0)
    rng = np.random.default_rng(5)
    centred, _, _ = centre_and_scale(points, [points.shape[1]], 0.0)

    def chosen(truth: np.ndarray) -> float:
        return choose(linear.Problem(centred, torch.from_numpy(truth).float(), weights=None, classes=2)).penalty

    assert chosen(rng.random((120, 2)) < 0.4) > 10 * chosen(points[:, :2] > 5)


def test_few_images_of_several_labels_take_the_usual_penalty() -> None:
    points, _ = clouds(7, 0.0)
    problem = linear.Problem(points, torch.ones(7, 2), weights=None, classes=2)
    assert choose(problem) == linear._USUAL
