"""Few shots: classes that nothing was trained on, each told by five images, over hundreds of drawn tasks.

A seed draws which half of a data set's classes is learnt from; the tasks are made of the other half, of its test images
where there is such a part. Every arm gets the same tasks, and tells them by the same prototypes:

    pixels      on the grey levels themselves
    untrained   on the encoder before it has learnt anything
    plain       on the encoder that was trained to name the first half, as one usually trains
    turned      the same, its classes turned and mirrored being classes too, where the episodes have it so
    episodic    on that which went through episodes instead

The last three begin with the same weights, half trained, and look at as many images from there on.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.bars import Bar
from training import comparison, data, prototypes, recipe
from training.data import ImageSet
from training.episodes import SYMMETRIES, turned
from training.prototypes import Distance
from training.recipe import Recipe
from training.splits import split
from training.transfer import Workshop, finetune, learn_to_learn, read, workshop

SEEDS = 5
TASKS, SHOTS, QUERIES = 300, 5, 15
DISTANCES: tuple[Distance, ...] = ("mahalanobis", "cosine")
ARMS = ("pixels", "untrained", "plain", "turned", "episodic")


@dataclass(frozen=True)
class Halves:
    """A data set by its classes: what may be learnt from, and what tasks are made of."""

    train: ImageSet
    validation: ImageSet
    strange: ImageSet


def measure(out: Path) -> Iterator[Bar]:
    garments = recipe.load("episodic", ["transfer.epochs=2"])
    yield from _measured(out, "Fashion-MNIST, 5-way 5-shot", garments, 0.85)
    folder = str(data.root() / "neu-surface")
    sets = ["input.height=64", "input.width=64", "transfer.epochs=10"]
    sets += ["transfer.symmetries=false", "transfer.augment.flip=any"]  # a surface has no up: turned it is the same
    surfaces = recipe.load("episodic", [f"source={folder}", f"target={folder}", *sets])
    yield from _measured(out, "NEU, 3-way 5-shot", surfaces, None)


def _measured(out: Path, what: str, chosen: Recipe, goal: float | None) -> Iterator[Bar]:
    found: dict[tuple[str, Distance], list[float]] = {(arm, distance): [] for arm in ARMS for distance in DISTANCES}
    for seed in range(SEEDS):
        seeded = chosen.model_copy(update={"seed": seed})
        halves = halved(seeded, seed)
        print(f"        {what}, seed {seed}: tasks of {', '.join(halves.strange.classes)}", flush=True)
        for arm, points, blocks in encoded(seeded, halves, out / Path(chosen.target).name / f"seed-{seed}"):
            reached = {each: solved(points, halves.strange.labels, blocks, seed, each) for each in DISTANCES}
            told = [f"{each} {v.mean():.4f} ± {1.96 * v.std() / np.sqrt(len(v)):.4f}" for each, v in reached.items()]
            print(f"        {arm:9} {', '.join(told)}", flush=True)
            for each, values in reached.items():
                found[arm, each].append(float(values.mean()))
    for (arm, distance), values in found.items():
        if not values:
            continue
        mean, low, high = comparison.interval(values)
        print(f"        {what}: {arm:9} by {distance:11} {mean:.4f}, {low:.4f} to {high:.4f} over seeds", flush=True)
    for distance in DISTANCES:
        ours = found["episodic", distance]
        best = max(float(np.mean(found[arm, distance])) for arm in ("pixels", "plain"))
        yield Bar(f"{what}, episodic by {distance}", float(np.mean(ours)), best, goal or best)
        for arm in ("pixels", "plain", "turned"):
            if not (theirs := found[arm, distance]):
                continue
            gain = comparison.interval([a - b for a, b in zip(ours, theirs, strict=True)])
            print(f"        less {arm}: {gain.mean:+.4f}, {gain.low:+.4f} to {gain.high:+.4f}", flush=True)
            if arm != "turned":
                yield Bar(f"{what}, episodic less {arm} by {distance}: the interval's lower end", gain.low, 0.0, 0.0)


def halved(chosen: Recipe, seed: int) -> Halves:
    spec = chosen.input.spec()
    whole = data.load(chosen.target, "train", spec)
    order = np.random.default_rng(seed).permutation(len(whole.classes))
    known, strange = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    tasks = data.load(chosen.target, "test", spec)  # of a folder without parts all there is, and none was trained on
    seen = only(whole, known)
    train, validation = split(seen, (min(2000, len(seen) // 5),), seed)
    return Halves(train, validation, only(tasks, strange))


def only(images: ImageSet, classes: np.ndarray) -> ImageSet:
    kept = images.take(np.flatnonzero(np.isin(images.labels, classes)))
    return replace(
        kept, labels=np.searchsorted(classes, kept.labels), classes=tuple(images.classes[label] for label in classes)
    )


def encoded(chosen: Recipe, halves: Halves, folder: Path) -> Iterator[tuple[str, np.ndarray, list[int]]]:
    """(arm, (N, D) of the strange images, sizes of what D joins)."""
    strange, transfer = halves.strange, chosen.transfer
    yield "pixels", strange.images[:].reshape(len(strange), -1).astype(np.float32) / 255, []
    shop = workshop(chosen, chosen.input.spec().shape, folder / "half", untrained=True)
    maps = [math.prod(shape) for shape in shop.net.pool.shapes]
    yield "untrained", read(shop, strange, transfer.reads), maps
    name(shop, halves.train, halves.validation, chosen)
    for arm in ARMS[2:]:
        if arm == "turned" and not transfer.symmetries:
            continue
        own = replace(shop, net=copy.deepcopy(shop.net)).kept_in(folder / arm)
        if arm == "episodic":
            learn_to_learn(own, halves.train, halves.validation, transfer)
        else:
            parts = [halves.train, halves.validation]
            name(own, *(eightfold(part) if arm == "turned" else part for part in parts), chosen)
        yield arm, read(own, strange, transfer.reads), maps


def name(shop: Workshop, train: ImageSet, validation: ImageSet, chosen: Recipe) -> None:
    transfer = chosen.transfer
    finetune(shop, train, validation, transfer, list(shop.net.blocks()), 0.0)


def eightfold(images: ImageSet) -> ImageSet:
    """Every image in one of its eight symmetries, which with its class makes another class."""
    turns = np.random.default_rng(0).integers(SYMMETRIES, size=len(images))
    pixels = turned(torch.from_numpy(images.images[:]).permute(0, 3, 1, 2), torch.from_numpy(turns))
    return ImageSet(
        pixels.permute(0, 2, 3, 1).contiguous().numpy(),
        images.labels + turns * len(images.classes),
        tuple(f"{name} {turn}" for turn in range(SYMMETRIES) for name in images.classes),
    )


def solved(points: np.ndarray, labels: np.ndarray, blocks: list[int], seed: int, distance: Distance) -> np.ndarray:
    """(TASKS,) shares of the queries that are told rightly; the same tasks for each arm of a seed."""
    rng = np.random.default_rng(1000 + seed)
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    known, asked = (np.repeat(np.arange(len(of_class)), count) for count in (SHOTS, QUERIES))
    found = []
    for _ in range(TASKS):
        drawn = [rng.choice(each, SHOTS + QUERIES, replace=False) for each in of_class]
        shots, queries = (np.concatenate(part) for part in ([d[:SHOTS] for d in drawn], [d[SHOTS:] for d in drawn]))
        learnt = prototypes.fit(points[shots], known, distance, blocks)
        found.append((learnt.logits(points[queries]).argmax(axis=1) == asked).mean())
    return np.array(found)
