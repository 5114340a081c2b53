"""What a frozen backbone with a linear head reaches on photographs, as the recipe `photos` makes and exports it.

A bundle is made of each folder. Its encoder reads every image once; for each draw of labels a head is
fitted, exported and run in the place of the bundle's own. Test images take part in no choice: the penalty comes from
cross-validation on the labelled images.
"""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.bundle import Bundle, load
from app.bundle.session import Session
from app.bundle.store import versions
from benchmarks.bars import Bar
from benchmarks.home import Skipped
from training import recipe, run
from training.data import named
from training.data.imageset import ImageSet
from training.data.read import has_parts, read_part
from training.data.splits import some_of_each, split, train_and_held_out
from training.learning.linear import head_on
from training.measure.intervals import Interval, student
from training.measure.outputs import outputs_of
from training.networks import weights
from training.networks.graph import to_onnx
from training.recipe import Recipe

SEEDS = 5
FEW = 10  # labels of a class
SETS = {  # folder → its settings, bar and goal with few labels, bar and goal with all
    "neu-surface": (("split.test=0.5",), (0.97, 0.985), (0.998, 1.0)),
    "clothing": ((), (0.70, 0.80), (0.85, 0.90)),
}
RUNS = 200


def backbone(out: Path) -> Iterator[Bar]:
    try:
        weights.path_of(recipe.load("photos", []).network)
    except weights.TrainingError as error:
        raise Skipped(str(error)) from None
    for name, (settings, few, whole) in SETS.items():
        folder = named.root() / name
        if not folder.is_dir():
            raise Skipped(f"{folder} is not there: set GRAFT_DATA to the folder that holds {name}")
        photographs = _made(folder, settings, out / name)
        for what, count, (bar, goal) in ((f"{FEW} labels a class", FEW, few), ("all labels", None, whole)):
            found = _over_seeds(photographs, count)
            print(f"        {name}, {what}: 95 % interval {found.low:.4f} to {found.high:.4f}", flush=True)
            yield Bar(f"{name}, {what}, mean of {SEEDS} seeds", found.mean, bar, goal)
    image = np.zeros((1, 224, 224, 3), np.uint8)
    if photographs.bundle.manifest.input.shape == image.shape[1:]:
        yield Bar("Lite0 at 224², one core, milliseconds to classify", _ms(photographs.bundle, image), 14, 9, False)


@dataclass(frozen=True)
class Photographs:
    """A folder, the bundle that `photos` made of it, and what its head reads of its images."""

    recipe: Recipe
    bundle: Bundle
    whole: ImageSet  # of a folder without parts all there are, else its training part
    points: np.ndarray  # (N, D) of `whole`
    test: tuple[np.ndarray, np.ndarray] | None  # (points, labels) of the folder's own test part


def _made(folder: Path, settings: tuple[str, ...], out: Path) -> Photographs:
    chosen = recipe.load("photos", [f"source={folder}", f"target={folder}", *settings])
    models = out / "models"
    if not (models / chosen.name).is_dir():
        run.run(chosen, models, out / "run")
    bundle = load((models / chosen.name / str(versions(models / chosen.name)[-1])).resolve(), threads=1)
    spec = bundle.manifest.input

    def points_of(data: ImageSet) -> np.ndarray:
        return outputs_of(bundle, data, "encode", (chosen.transfer.reads,)).encoded[chosen.transfer.reads]

    whole, test = read_part(str(folder), "train", spec), None
    if has_parts(str(folder)):
        part = read_part(str(folder), "test", spec)
        test = points_of(part), part.labels
    return Photographs(chosen, bundle, whole, points_of(whole), test)


def _over_seeds(photographs: Photographs, count: int | None) -> Interval:
    return student([_accuracy(photographs, count, seed) for seed in range(SEEDS)])


def _accuracy(photographs: Photographs, count: int | None, seed: int) -> float:
    """With `count` labels of each class, or all that the recipe trains on; on all images of the test part."""
    place = {name: row for row, name in enumerate(photographs.whole.names)}

    def points_of(data: ImageSet) -> np.ndarray:
        return photographs.points[[place[name] for name in data.names]]

    target, test = photographs.whole, photographs.test
    rules = photographs.recipe.split
    if test is None:
        target, held_out = split(target, (round(rules.test * len(target)),), seed)
        test = points_of(held_out), held_out.labels
    if count is None:
        target, _, _ = train_and_held_out(target, rules, seed)
    else:
        target = target.take(some_of_each(target, count, seed))
    bundle = _with_head(photographs.bundle, points_of(target), target)
    return float(np.mean(bundle.logits({photographs.recipe.transfer.reads: test[0]}).argmax(axis=1) == test[1]))


def _with_head(bundle: Bundle, points: np.ndarray, labelled: ImageSet) -> Bundle:
    graph, maps = bundle.manifest.graphs.head, [math.prod(each) for each in bundle.manifest.feature_maps]
    assert graph is not None
    head = head_on(points, labelled.labels, classes=len(labelled.classes), maps=maps)
    return replace(bundle, head=Session(to_onnx(head, graph), graph, graph.file, threads=1))


def _ms(bundle: Bundle, image: np.ndarray) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        bundle.classify(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
