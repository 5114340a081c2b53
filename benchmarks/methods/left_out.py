"""What `graft` says of itself after a few images, held against new images: no training, on the bundles in models/.

Tasks of 2 to 15 shots are drawn from classes that are none of the bundle's: MNIST's, of its test part, and NEU's.
The shots left out in turn give the accuracy that is stated, its lower bound, and the temperature; 60 other images a
class give what is true.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from app.bundle import Bundle, load
from app.bundle.scoring import probabilities
from app.bundle.store import names, versions
from benchmarks.bars import Bar
from training.data import named
from training.data.imageset import ImageSet
from training.data.read import read_part
from training.measure.intervals import at_least
from training.measure.outputs import outputs_of
from training.score import prototypes, temperature
from training.shots.graft import usual_tensor

MODELS = Path("models")
TASKS, QUERIES = 40, 60
SETTINGS = ((3, 5), (5, 2), (5, 5), (10, 5), (5, 15))  # classes, shots of each


def measure(_: Path) -> Iterator[Bar]:
    held = []
    for name in names(MODELS):
        bundle = load(MODELS / name / str(versions(MODELS / name)[-1]))
        for data in ("mnist", str(named.root() / "neu-surface")):
            images = read_part(data, "test", bundle.manifest.input)
            points, blocks = _points(bundle, images)
            for classes, shots in SETTINGS:
                if classes > len(images.classes):
                    continue
                stated, true, confidence, below = evaluate_task(points, images.labels, blocks, classes, shots).mean(
                    axis=0
                )
                held.append(below)
                print(
                    f"        {name}, {Path(data).name}, {classes} classes of {shots}: left out {stated:.3f}, "
                    f"new images {true:.3f}, mean confidence {confidence:.3f}; the bound holds in {below:.0%} of "
                    f"{TASKS} tasks",
                    flush=True,
                )
    yield Bar("tasks in which the stated bound holds, mean over settings", float(np.mean(held)), 0.95, 0.95)
    yield Bar("the same, the worst setting", float(np.min(held)), 0.9, 0.95)


def _points(bundle: Bundle, images: ImageSet) -> tuple[np.ndarray, list[int]]:
    tensor = usual_tensor(bundle)
    maps = [int(np.prod(each)) for each in bundle.manifest.feature_maps] if tensor == "features" else []
    return outputs_of(bundle, images, "encode", (tensor,)).encoded[tensor], maps


def evaluate_task(points: np.ndarray, labels: np.ndarray, blocks: list[int], classes: int, shots: int) -> np.ndarray:
    """(TASKS, 4): the stated accuracy, the true one, the mean confidence, and whether the bound holds."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(TASKS):
        drawn = [
            rng.permutation(np.flatnonzero(labels == label))[: shots + QUERIES]
            for label in rng.choice(np.unique(labels), classes, replace=False)
        ]
        known = np.repeat(np.arange(classes), shots)
        requested = np.repeat(np.arange(classes), [len(each) - shots for each in drawn])
        shown = points[np.concatenate([each[:shots] for each in drawn])]
        left_out = prototypes.left_out(shown, known, "mahalanobis", blocks)
        right = int((left_out.argmax(axis=1) == known).sum())
        queries = points[np.concatenate([each[shots:] for each in drawn])]
        logits = prototypes.fit(shown, known, "mahalanobis", blocks).logits(queries)
        fitted = temperature.fit(left_out, known, temperature.PROTOTYPES)
        confidence = probabilities(logits, fitted).max(axis=1).mean()
        true = (logits.argmax(axis=1) == requested).mean()
        rows.append((right / len(known), true, confidence, true >= at_least(right, len(known))))
    return np.array(rows, float)
