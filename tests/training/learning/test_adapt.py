"""Labels of the source, images alone of the target: the formulas, and runs from folders to a bundle."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageOps

from app.bundle import load
from app.bundle.drawings import GARMENTS
from training.__main__ import main
from training.learning.adapt import (
    LARGE,
    PENALTIES,
    adversarial,
    discrepancy,
    discrepancy_linear,
    domain_classifier,
    reversed_gradient,
    strength,
)
from training.recipe import MmdMode


def test_the_schedule_is_the_published_one() -> None:
    assert strength(0.0) == 0
    assert strength(0.1) == pytest.approx(2 / (1 + np.exp(-1)) - 1)
    assert strength(1.0) == pytest.approx(1, abs=1e-4)


def test_a_reversed_gradient_is_the_gradient_times_minus_its_weight() -> None:
    points = torch.tensor([[1.0, 2.0]], requires_grad=True)
    passed = reversed_gradient(points, 0.3)
    assert torch.equal(passed, points)
    (passed * torch.tensor([[5.0, 7.0]])).sum().backward()
    assert points.grad is not None
    assert torch.allclose(points.grad, torch.tensor([[-1.5, -2.1]]))


def test_the_domain_classifier_learns_what_the_encoder_unlearns() -> None:
    torch.manual_seed(0)
    classifier = domain_classifier(4)
    source, target = torch.randn(32, 4, requires_grad=True), torch.randn(32, 4) + 1
    before = adversarial(classifier, source, target, 1.0)
    before.backward()
    assert source.grad is not None
    with torch.no_grad():
        assert adversarial(classifier, source - 0.5 * source.grad / source.grad.norm(), target, 1.0) > before
        for parameter in classifier.parameters():
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad
        assert adversarial(classifier, source, target, 1.0) < before


def plain_discrepancy(source: np.ndarray, target: np.ndarray) -> float:
    """Pair by pair, as the formula is printed."""

    def squared(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.square(a - b).sum())

    def pairs(points: np.ndarray) -> list[float]:
        return [squared(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j]

    own, others = pairs(source), pairs(target)
    across = [squared(a, b) for a in source for b in target]
    width = sorted([*own, *others, *across])[(len(own) + len(others) + len(across) - 1) // 2]

    def kernel(distances: list[float]) -> float:
        return float(np.mean([np.exp(-d / (share * width)) for d in distances for share in (0.25, 0.5, 1, 2, 4)]))

    return kernel(own) + kernel(others) - 2 * kernel(across)


def test_the_discrepancy_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(7, 3)), rng.normal(0.5, 2.0, (5, 3))
    found = discrepancy(torch.tensor(source), torch.tensor(target))
    assert found.item() == pytest.approx(plain_discrepancy(source, target), rel=1e-6)


def test_both_estimates_are_nothing_on_average_for_one_domain_and_agree_for_two() -> None:
    torch.manual_seed(0)
    for shift in (0.0, 1.0):
        draws = [(torch.randn(64, 8), torch.randn(64, 8) + shift) for _ in range(200)]
        for_each = {
            estimate: torch.stack([estimate(*draw) for draw in draws]) for estimate in (discrepancy, discrepancy_linear)
        }
        quadratic, linear = for_each.values()
        error = ((quadratic.var() + linear.var()) / len(draws)).sqrt().item()
        assert linear.std() > quadratic.std(), "what is saved in time is paid in spread"
        if shift:
            assert quadratic.mean() > 10 * error
            # Their medians differ a little: pairs within a domain count differently.
            assert linear.mean().item() == pytest.approx(quadratic.mean().item(), rel=0.1, abs=3 * error)
        else:
            assert abs(quadratic.mean().item()) < 3 * error
            assert abs(linear.mean().item()) < 3 * error
            assert (quadratic < 0).any(), "unbiased, so it may be negative"


def test_large_batches_are_compared_in_linear_time() -> None:
    source, target = torch.randn(2, 8, 3)
    for batch, estimate in ((LARGE, discrepancy), (LARGE + 1, discrepancy_linear)):
        penalty = PENALTIES["mmd"](MmdMode(batch=batch), 3, {})
        assert penalty(source, target, 0.5) == 0.5 * estimate(source, target)


def test_points_that_are_all_alike_are_no_division_by_zero() -> None:
    for estimate in (discrepancy, discrepancy_linear):
        points = torch.ones(4, 3, requires_grad=True)
        found = estimate(points, torch.ones(4, 3))
        found.backward()
        assert found.item() == 0
        assert points.grad is not None
        assert torch.isfinite(points.grad).all()


@pytest.fixture(scope="module")
def negatives(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn garments, dark on bright; those to train on lie in one folder, so that they have no labels."""
    folder = tmp_path_factory.mktemp("negatives")
    (folder / "train").mkdir()
    for path in sorted(images.rglob("*.png")):
        part, kind = path.relative_to(images).parts[:2]
        to = folder / "train" / f"{kind}-{path.name}" if part == "train" else folder / "test" / kind / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(path).convert("L")).save(to)
    return folder


def sets(target: Path, mode: str, *more: str) -> list[str]:
    changes = (f"target={target}", f"transfer.mode={mode}", "transfer.batch=32", "transfer.rate=1e-2", *more)
    return [part for change in changes for part in ("--set", change)]


@pytest.mark.parametrize(("mode", "hidden"), [("dann", 0), ("mmd", 8), ("source-only", 0)])
def test_a_bundle_of_a_target_without_labels(
    mode: str, hidden: int, recipe: Path, negatives: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("transfer.epochs=3", f"transfer.hidden={hidden}", "anomaly.distances=['embedding.neighbours']")
    command = ["run", str(recipe), "--models", str(tmp_path / "models"), "--run", str(run)]
    assert main([*command, *sets(negatives, mode, *more)]) == 0
    bundle = load(tmp_path / "models" / "drawn" / "1")  # which runs its golden pairs
    assert bundle.manifest.classifier is not None
    assert bundle.manifest.classifier.labels == tuple(sorted(GARMENTS))
    assert bundle.manifest.classifier.temperature != 1.0
    head = onnx.load(str(tmp_path / "models/drawn/1/head.onnx")).graph
    assert len(head.initializer) == (4 if hidden else 2), "weights and biases of its layers"
    accuracy = next(metric for metric in bundle.manifest.metrics if metric.name == "accuracy")
    assert accuracy.images == 30 * len(GARMENTS), "the target's test part, and its labels, are used at last"
    assert "validation images of the source." in (tmp_path / "models/drawn/1/card.md").read_text()
    stages = [json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert stages == [mode] * 3 + ["decoder"] * 2 + ["test"], "nothing is pretrained"
    page = (run / "report.html").read_text()
    assert "How far apart source and target are" in page
    assert re.search(r"<td>as codes</td>", page)
    assert "Labels most likely wrong" not in page, "the target has none to doubt"


def test_labels_of_the_target_change_nothing_that_is_learnt(
    recipe: Path, images: Path, negatives: Path, tmp_path: Path
) -> None:
    labelled = tmp_path / "labelled"
    shutil.copytree(negatives / "test", labelled / "test")
    for kind in GARMENTS:
        (labelled / "train" / kind).mkdir(parents=True)
    for path, kind in zip(sorted((negatives / "train").iterdir()), sorted([*GARMENTS] * 120), strict=True):
        shutil.copy(path, labelled / "train" / kind / path.name)
    (found, _), (with_wrong_labels, _) = (learnt(recipe, target, tmp_path) for target in (negatives, labelled))
    assert all(torch.equal(value, with_wrong_labels["head"][name]) for name, value in found["head"].items())


def learnt(recipe: Path, target: Path, folder: Path, *more: str) -> tuple[dict[str, dict[str, torch.Tensor]], Path]:
    run = folder / f"run-{target.name}"
    changes = sets(target, "dann", "transfer.epochs=1", "network.kind=conv", "network.width=4")
    assert main(["transfer", str(recipe), "--run", str(run), *changes, *more]) == 0
    return torch.load(run / "weights.pt", weights_only=True), run / "weights.pt"


def test_a_run_that_goes_on_after_its_adaptation_ends_with_the_same_weights(
    recipe: Path, negatives: Path, tmp_path: Path
) -> None:
    found, path = learnt(recipe, negatives, tmp_path)
    path.unlink()
    again, _ = learnt(recipe, negatives, tmp_path, "--resume")
    assert any("running_mean" in name for name in found["encoder"]), "statistics are what is made anew"
    for part, weights in found.items():
        assert all(torch.equal(value, again[part][name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["transfer.mode=dann"], "source and target are the same"),
        (["transfer.mode=mmd", "source={unlabelled}"], "learns the source's labels, it has the classes none"),
        (["transfer.mode=mmd", "target={others}"], "its test part has the classes cat, dog, the source"),
        (["transfer.mode=mmd", "target={empty}"], "no images in it"),
        (["transfer.mode=dann", "transfer.patience=2"], "no loss tells which epoch is best"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    changes: list[str], message: str, recipe: Path, negatives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for kind in ("cat", "dog"):
        shutil.copytree(negatives / "train", tmp_path / "others" / kind)
    places = {"unlabelled": negatives / "train", "others": tmp_path / "others", "empty": tmp_path / "empty"}
    given = [part for change in changes for part in ("--set", change.format(**places))]
    assert main(["run", str(recipe), "--models", str(tmp_path / "models"), "--run", str(tmp_path / "run"), *given]) == 2
    assert message in capsys.readouterr().err


def test_what_has_no_pretraining_is_neither_pretrained_nor_taken_from_elsewhere(
    recipe: Path, negatives: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = sets(negatives, "dann")
    assert main(["pretrain", str(recipe), "--run", str(tmp_path / "run"), *given]) == 2
    assert "transfer.mode=dann has no pretraining" in capsys.readouterr().err
    taken = ["--from", str(trained / "run")]
    assert main(["transfer", str(recipe), "--run", str(tmp_path / "run"), *taken, *given]) == 2
    assert "transfer.mode=dann has no pretraining: leave out --from" in capsys.readouterr().err
    assert main(["compare", str(recipe), "--out", str(tmp_path / "compared"), *given]) == 2
    assert "transfer.mode=dann: a comparison needs labels of the target" in capsys.readouterr().err
