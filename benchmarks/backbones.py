"""What published networks reach on photographs, and what they cost.

`backbone`: frozen, with a linear head, as the recipe `photos` makes and exports it. A bundle is made of each folder;
its encoder reads every image once; for each draw of labels a head is fitted, exported and run in the place of the
bundle's own. Test images take part in no choice: the penalty comes from cross-validation on the labelled images.
`backbone-speed`: milliseconds of an image, minutes of a folder. `thawed`: the same with its upper blocks trained.
`distilled`: what a small network keeps of it. `literature`: the two recipes that the literature begins with, on Lite0.
"""

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
SIDE = 224
PHOTOGRAPHS = 3000
THAWED = (
    *(
        "mode=gradual",
        "begin=linear",
        "thaw=2",
        "views=5",
        "mixup=0.4",
        "augment.flip=across",
        "augment.crop=0.6",
        "freeze_norms=true",
    ),
    *("optimiser=adamw", "weight_decay=0.01", "rate=1e-4", "slower_below=1", "ema=0.99", "batch=32", "epochs=8"),
)


def backbone(out: Path) -> Iterator[Bar]:
    for name, (settings, few, whole) in SETS.items():
        photographs = _made(folder_of(name), settings, out / name)
        for what, count, (bar, goal) in ((f"{FEW} labels a class", FEW, few), ("all labels", None, whole)):
            found = _over_seeds(photographs, count)
            print(f"        {name}, {what}: 95 % interval {found.low:.4f} to {found.high:.4f}", flush=True)
            yield Bar(f"{name}, {what}, mean of {SEEDS} seeds", found.mean, bar, goal)


def speed(out: Path) -> Iterator[Bar]:
    """A process of its own with one core at hand measures what a service would need: `taskset -c 0`."""
    square = (f"input.height={SIDE}", f"input.width={SIDE}")
    for what, settings, bar, goal in (("fp32", (), 14, 9), ("int8", ("export.int8=true",), 9, 4)):
        bundle = bundle_of(folder_of("clothing"), (*square, *settings), out / what)
        notes = [metric.name for metric in bundle.manifest.metrics if "int8" in metric.name]
        print(f"        {what}: {', '.join(notes) or 'in floats'}", flush=True)
        yield Bar(f"Lite0 at {SIDE}², {what}, one core, milliseconds to classify", _ms(bundle), bar, goal, False)
    folder = _many(out / f"photographs-{PHOTOGRAPHS}")
    command = [sys.executable, "-m", "training", "run", "photos"]
    command += ["--set", f"source={folder}", "--set", f"target={folder}", "--models", str(out / "timed")]
    start = time.perf_counter()
    subprocess.run([*command, "--run", str(out / f"timed-{start:.0f}")], check=True)
    minutes = (time.perf_counter() - start) / 60
    yield Bar(f"{PHOTOGRAPHS:,} photographs to a bundle by photos, minutes", minutes, 4, 2, False)


def thawed(out: Path) -> Iterator[Bar]:
    """Each seed draws another part to train on; the test part is the folder's own."""
    folder, gains = folder_of("clothing"), []
    frozen = _made(folder, (), out / "clothing")
    for seed in range(SEEDS):
        settings = (f"seed={seed}", *(f"transfer.{setting}" for setting in THAWED))
        warm = _value(bundle_of(folder, settings, out / f"thawed-{seed}"), "accuracy")
        gains.append(100 * (warm - _accuracy(frozen, None, seed)))
        print(f"        seed {seed}: thawed {warm:.4f}, {gains[-1]:+.1f} points", flush=True)
    found = student(gains)
    print(f"        95 % interval {found.low:+.1f} to {found.high:+.1f} points", flush=True)
    yield Bar("clothing, all labels, thawed over frozen, points, lower end of the interval", found.low, 0, 4)


def distilled(out: Path) -> Iterator[Bar]:
    folder = folder_of("clothing")
    small = bundle_of(folder, (), out / "distilled", recipe_name="photos-small")
    # As many weights, in a network that learns from few images; with enough epochs for random weights.
    alone = (
        *("transfer.mode=scratch", "network={width=16,most=128,latent=128}", "input.height=96", "input.width=96"),
        *("transfer.epochs=90", "transfer.rate=2e-3", "transfer.optimiser=adam", "transfer.weight_decay=0"),
    )
    scratch = _value(bundle_of(folder, alone, out / "scratch", recipe_name="photos-small"), "accuracy")
    reached, teacher = _value(small, "accuracy"), _value(small, "teacher_accuracy")
    print(f"        scratch {scratch:.4f}, distilled {reached:.4f}, teacher {teacher:.4f}", flush=True)
    kept = (reached - scratch) / (teacher - scratch)
    yield Bar("clothing, share of the teacher's gain over scratch that the small network keeps", kept, 0.5, 0.8)


def literature(out: Path) -> Iterator[Bar]:
    """One seed each, beside `photos` on the same split: what is asked is whether its head is a better choice."""
    for name, (settings, *_) in SETS.items():
        folder = folder_of(name)
        usual = _value(bundle_of(folder, settings, out / name), "accuracy")
        for recipe_name in ("backbone", "backbone-thawed"):
            chosen = (*settings, "network.backbone=efficientnet-lite0")
            found = _value(bundle_of(folder, chosen, out / f"{recipe_name}-{name}", recipe_name), "accuracy")
            yield Bar(f"{name}, {recipe_name} on Lite0, accuracy beside photos", found, usual, usual)


def folder_of(name: str) -> Path:
    try:
        weights.path_of(recipe.load("photos", []).network)
    except weights.TrainingError as error:
        raise Skipped(str(error)) from None
    folder = named.root() / name
    if not folder.is_dir():
        raise Skipped(f"{folder} is not there: set GRAFT_DATA to the folder that holds {name}")
    return folder


def _many(folder: Path) -> Path:
    """A folder of links to photographs, one subfolder a class: all of clothing, then surfaces."""
    if folder.is_dir():
        return folder
    clothes = sorted(folder_of("clothing").glob("*/*/*.jpg"))
    surfaces = sorted(folder_of("neu-surface").glob("*/*.jpg"))
    spread = np.linspace(0, len(surfaces) - 1, PHOTOGRAPHS - len(clothes)).astype(int)
    for path in (*clothes, *(surfaces[place] for place in spread)):
        home = folder / path.parent.name
        home.mkdir(parents=True, exist_ok=True)
        (home / path.name).symlink_to(path)
    return folder


@dataclass(frozen=True)
class Photographs:
    """A folder, the bundle that `photos` made of it, and what its head reads of its images."""

    recipe: Recipe
    bundle: Bundle
    whole: ImageSet  # of a folder without parts all there are, else its training part
    points: np.ndarray  # (N, D) of `whole`
    test: tuple[np.ndarray, np.ndarray] | None  # (points, labels) of the folder's own test part


def _made(folder: Path, settings: tuple[str, ...], out: Path) -> Photographs:
    bundle = bundle_of(folder, settings, out)
    chosen = _recipe("photos", folder, settings)
    spec = bundle.manifest.input

    def points_of(data: ImageSet) -> np.ndarray:
        return outputs_of(bundle, data, "encode", (chosen.transfer.reads,)).encoded[chosen.transfer.reads]

    whole, test = read_part(str(folder), "train", spec), None
    if has_parts(str(folder)):
        part = read_part(str(folder), "test", spec)
        test = points_of(part), part.labels
    return Photographs(chosen, bundle, whole, points_of(whole), test)


def bundle_of(folder: Path, settings: Sequence[str], out: Path, recipe_name: str = "photos") -> Bundle:
    """Made on first use."""
    models = out / "models"
    if not (models / recipe_name).is_dir():
        run.run(_recipe(recipe_name, folder, settings), models, out / "run")
    return load((models / recipe_name / str(versions(models / recipe_name)[-1])).resolve(), threads=1)


def _recipe(name: str, folder: Path, settings: Sequence[str]) -> Recipe:
    return recipe.load(name, [f"source={folder}", f"target={folder}", *settings])


def _value(bundle: Bundle, name: str) -> float:
    return next(metric.value for metric in bundle.manifest.metrics if metric.name == name)


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


def _ms(bundle: Bundle) -> float:
    image, times = np.zeros((1, *bundle.manifest.input.shape), np.uint8), []
    for _ in range(RUNS):
        start = time.perf_counter()
        bundle.classify(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
