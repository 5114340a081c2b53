"""What `inspect`, `inspect-small` and `inspect-own` find on photographs of defects, learnt from sound ones alone, and
what it costs.

Each folder has `train/good`, `test` and `ground_truth`. The numbers are those that `run` writes into the bundle,
measured on the whole test part through the code that serves. Nothing is chosen by the test parts; another seed draws
other folds, and another memory or other networks.
"""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from app.bundle import Bundle, load
from app.bundle.regions import Size
from app.bundle.store import versions
from benchmarks.bars import Bar
from benchmarks.home import Skipped
from benchmarks.tiles import tiles
from training import recipe, run
from training.data import named
from training.errors import TrainingError
from training.networks import weights

SEEDS = 3
SETS = ("commutator", "paper")  # a folder each, or a folder of kinds
BARS = {  # set → metric → bar and goal of the mean over its kinds
    "commutator": {"image_auroc": (0.94, 0.98), "pixel_auroc": (0.97, 0.99), "aupro_30": (0.85, 0.93)},
    "paper": {"image_auroc": (0.995, 0.999), "pixel_auroc": (0.95, 0.98)},
}
STATED = 0.05  # the recipe's false_alarm_rate
DEVIATIONS = 2.0  # by which a share of false alarms may exceed the stated rate, of both samples together
SMALL, OWN = "inspect-small", "inspect-own"
OWN_SEEDS = 1  # seven sets, minutes each
OWN_BARS = {"commutator": {"image_auroc": (0.85, 0.93)}, "paper": {"image_auroc": (0.97, 0.99)}}
METRICS = ("image_auroc", "pixel_auroc", "aupro_30")
COSTS = {  # recipe → the input's sides → milliseconds, bar and goal
    "inspect": {(224, 224): (40, 20), (576, 224): (90, 45)},
    SMALL: {(224, 224): (15, 8), (576, 224): (35, 18)},
    OWN: {},
}
RUNS = 50


def inspect(out: Path) -> Iterator[Bar]:
    _need_weights()
    yield from tiles(out / "tiles")
    yield from _measured("inspect", SEEDS, BARS, out)


def inspect_small(out: Path) -> Iterator[Bar]:
    """In integers, with fewer patches: the bars are of its time, one seed tells what that costs."""
    _need_weights()
    yield from _measured(SMALL, 1, {name: {} for name in SETS}, out)


def inspect_own(out: Path) -> Iterator[Bar]:
    """Without published weights."""
    yield from _measured(OWN, OWN_SEEDS, OWN_BARS, out)


def _need_weights() -> None:
    try:
        weights.path_of(recipe.load("inspect", []).network)
    except TrainingError as error:
        raise Skipped(str(error)) from None


def _measured(
    recipe_name: str, seeds: int, bars: dict[str, dict[str, tuple[float, float]]], out: Path
) -> Iterator[Bar]:
    for name in SETS:
        folders = _folders(name)
        found = {folder.name: [_bundle(recipe_name, folder, seed, out) for seed in range(seeds)] for folder in folders}
        for metric in METRICS:
            by_seed = [statistics.mean(_value(found[kind][seed], metric) for kind in found) for seed in range(seeds)]
            spread = ", ".join(f"{value:.4f}" for value in by_seed)
            print(f"        {name}, {metric}, by seed: {spread}", flush=True)
            if metric in bars[name]:
                bar, goal = bars[name][metric]
                yield Bar(f"{name}, {metric}, {_seeds(seeds)}", statistics.mean(by_seed), bar, goal)
        for metric in ("false_alarm_rate", "false_region_rate"):
            rate, most = _false_alarms([bundles[0] for bundles in found.values()], metric)
            yield Bar(f"{name}, {metric} at a stated {STATED:.0%}", rate, most, STATED, higher_is_better=False)
        made = [each for bundles in found.values() for each in bundles]
        integers = sum(any(metric.how.endswith("kept") for metric in each.manifest.metrics) for each in made)
        if recipe.load(recipe_name, []).export.int8:
            print(f"        {name}: {integers} of {len(made)} in integers", flush=True)
        timed = found[folders[0].name][0]
        sides = tuple(sorted(timed.manifest.input.shape[:2], reverse=True))
        if sides in COSTS[recipe_name]:
            bar, goal = COSTS[recipe_name][sides]
            what = f"{sides[1]} × {sides[0]}, one core, score, map and regions, milliseconds"
            yield Bar(what, _ms(timed), bar, goal, higher_is_better=False)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean of {count} seeds"


def _folders(name: str) -> list[Path]:
    home = named.root() / name
    if not home.is_dir():
        raise Skipped(f"{home} is not there: set GRAFT_DATA to the folder that holds {name}")
    return [home] if (home / "train").is_dir() else sorted(each for each in home.iterdir() if (each / "train").is_dir())


def _bundle(recipe_name: str, folder: Path, seed: int, out: Path) -> Bundle:
    """Made on first use."""
    name = folder.name.lower()
    out = out if recipe_name == "inspect" else out / recipe_name
    models = out / f"seed-{seed}"
    if not (models / name).is_dir():
        settings = [f"source={folder}", f"target={folder}", f"seed={seed}", f"name={name}"]
        run.run(recipe.load(recipe_name, settings), models, out / f"run-{name}-{seed}")
    return load((models / name / str(versions(models / name)[-1])).resolve(), threads=1)


def _value(bundle: Bundle, name: str) -> float:
    return next(metric.value for metric in bundle.manifest.metrics if metric.name == name)


def _false_alarms(bundles: Sequence[Bundle], metric: str) -> tuple[float, float]:
    """(share of all sound test images, the most that the stated rate explains with so many normals and test images)."""
    images = [next(each.images for each in bundle.manifest.metrics if each.name == metric) for bundle in bundles]
    alarms = sum(_value(bundle, metric) * count for bundle, count in zip(bundles, images, strict=True))
    calibrated = [bundle.manifest.anomaly.calibrated_on for bundle in bundles if bundle.manifest.anomaly is not None]
    variance = STATED * (1 - STATED) * (1 / sum(images) + 1 / sum(calibrated))
    return alarms / sum(images), STATED + DEVIATIONS * math.sqrt(variance)


def _ms(bundle: Bundle) -> float:
    spec = bundle.manifest.input
    image = np.random.default_rng(0).integers(0, 256, (1, *spec.shape), np.uint8)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        encoded = bundle.encode(image, patches=True)
        found = bundle.measure_patches(encoded)
        assert bundle.scorer is not None
        bundle.scorer.score(bundle.taken(image, encoded | found, bundle.scorer.tensors), None)
        bundle.regions(found["anomaly_map"], [Size(spec.width, spec.height)])
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
