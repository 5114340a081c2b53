"""Few shots: classes that nothing was trained on, each told by five images, over hundreds of drawn tasks.

A seed draws which half of a data set's classes is learnt from; the tasks are made of the other half, of its test images
where there is such a part. Every arm gets the same tasks, and tells them by the same prototypes:

    pixels      on the grey levels themselves
    untrained   on the encoder before it has learnt anything
    plain       on the encoder that was trained to name the first half, as one usually trains
    turned      the same, its classes turned and mirrored being classes too, where the episodes have it so
    episodic    on that which went through episodes instead

The last three begin with the same weights, half trained, and look at as many images from there on.

Beside that: whether what `graft` says of itself after five images is true of the next ones; and, of the encoders of all
seeds, whether the nearest by its task embedding is a good one to take.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from app.bundle.scoring import probabilities
from benchmarks.bars import Bar
from training import recipe
from training.data import named
from training.data.imageset import ImageSet
from training.data.read import has_parts, read_part
from training.data.splits import split
from training.learning.episodes import SYMMETRIES, train_encoder, turned
from training.learning.finetune import finetune
from training.learning.inference import read
from training.learning.workshop import Workshop, open_workshop
from training.measure.intervals import at_least, student
from training.recipe import Recipe
from training.score import prototypes, temperature
from training.score.prototypes import Distance
from training.shots import tasks

SEEDS, SEEDS_OF_PICTURES = 10, 6  # the second are larger
TASKS, SHOTS, QUERIES = 300, 5, 15
DISTANCES: tuple[Distance, ...] = ("mahalanobis", "cosine")
ARMS = ("pixels", "untrained", "plain", "turned", "episodic")


@dataclass(frozen=True)
class Halves:
    """A data set by its classes: what may be learnt from, and what tasks are made of."""

    train: ImageSet
    validation: ImageSet
    unusual: ImageSet


def measure(out: Path) -> Iterator[Bar]:
    garments = recipe.load("episodic", ["transfer.epochs=2"])
    yield from _measured(out, "Fashion-MNIST, 5-way 5-shot", garments, SEEDS, 0.85)
    folder = str(named.root() / "neu-surface")
    sets = ["input.height=64", "input.width=64", "transfer.epochs=30"]
    sets += ["transfer.symmetries=false", "transfer.augment.flip=any"]  # a surface has no up: turned it is the same
    surfaces = recipe.load("episodic", [f"source={folder}", f"target={folder}", *sets])
    yield from _measured(out, "NEU, 3-way 5-shot", surfaces, SEEDS_OF_PICTURES, None)


def _measured(out: Path, what: str, chosen: Recipe, seeds: int, goal: float | None) -> Iterator[Bar]:
    found: dict[tuple[str, Distance], list[float]] = {(arm, distance): [] for arm in ARMS for distance in DISTANCES}
    shops, known = list[Workshop](), list[np.ndarray]()
    for seed in range(seeds):
        seeded = chosen.model_copy(update={"seed": seed})
        halves = halved(seeded, seed)
        print(f"        {what}, seed {seed}: tasks of {', '.join(halves.strange.classes)}", flush=True)
        folder = out / Path(chosen.target).name / f"seed-{seed}"
        for arm, workshop, points, blocks in encoded(seeded, halves, folder):  # noqa: B007 - the last, episodic, is kept
            reached = {each: solved(points, halves.unusual.labels, blocks, seed, each) for each in DISTANCES}
            output = [f"{each} {v.mean():.4f} ± {1.96 * v.std() / np.sqrt(len(v)):.4f}" for each, v in reached.items()]
            print(f"        {arm:9} {', '.join(output)}", flush=True)
            for each, values in reached.items():
                found[arm, each].append(float(values.mean()))
        shops.append(workshop)
        known.append(read(workshop, halves.validation, "embedding"))
        print(f"        {calibration_line(points, halves.strange.labels, blocks, seed)}", flush=True)
    if has_parts(chosen.target):  # whose test images none of the encoders has seen, whichever half they had
        images = read_part(chosen.target, "test", chosen.input.spec())
        print(f"        {what}: {nearest(shops, known, images, chosen.transfer.reads, blocks)}", flush=True)
    for (arm, distance), values in found.items():
        if not values:
            continue
        mean, low, high = student(values)
        print(f"        {what}: {arm:9} by {distance:11} {mean:.4f}, {low:.4f} to {high:.4f} over seeds", flush=True)
    for distance in DISTANCES:
        ours = found["episodic", distance]
        best = max(float(np.mean(found[arm, distance])) for arm in ("pixels", "plain"))
        yield Bar(f"{what}, episodic by {distance}", float(np.mean(ours)), best, goal or best)
        for arm in ("pixels", "plain", "turned"):
            if not (theirs := found[arm, distance]):
                continue
            gain = student([a - b for a, b in zip(ours, theirs, strict=True)])
            print(f"        less {arm}: {gain.mean:+.4f}, {gain.low:+.4f} to {gain.high:+.4f}", flush=True)
            if arm != "turned":
                yield Bar(f"{what}, episodic less {arm} by {distance}: the interval's lower end", gain.low, 0.0, 0.0)


def halved(chosen: Recipe, seed: int) -> Halves:
    spec = chosen.input.spec()
    whole = read_part(chosen.target, "train", spec)
    order = np.random.default_rng(seed).permutation(len(whole.classes))
    known, unusual = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    requested = read_part(
        chosen.target, "test", spec
    )  # of a folder without parts all there is, and none was trained on
    seen = only(whole, known)
    train, validation = split(seen, (min(2000, len(seen) // 5),), seed)
    return Halves(train, validation, only(requested, unusual))


def only(images: ImageSet, classes: np.ndarray) -> ImageSet:
    kept = images.take(np.flatnonzero(np.isin(images.labels, classes)))
    return replace(
        kept, labels=np.searchsorted(classes, kept.labels), classes=tuple(images.classes[label] for label in classes)
    )


def encoded(chosen: Recipe, halves: Halves, folder: Path) -> Iterator[tuple[str, Workshop, np.ndarray, list[int]]]:
    """(arm, its network, (N, D) of the strange images, sizes of what D joins)."""
    unusual, transfer = halves.unusual, chosen.transfer
    workshop = open_workshop(chosen, chosen.input.spec().shape, folder / "half", untrained=True)
    yield "pixels", workshop, unusual.images[:].reshape(len(unusual), -1).astype(np.float32) / 255, []
    maps = [math.prod(shape) for shape in workshop.net.pool.shapes]
    yield "untrained", workshop, read(workshop, unusual, transfer.reads), maps
    name(workshop, halves.train, halves.validation, chosen)
    for arm in ARMS[2:]:
        if arm == "turned" and not transfer.symmetries:
            continue
        own = replace(workshop, net=copy.deepcopy(workshop.net)).kept_in(folder / arm)
        if arm == "episodic":
            train_encoder(own, halves.train, halves.validation, transfer)
        else:
            parts = [halves.train, halves.validation]
            name(own, *(eightfold(part) if arm == "turned" else part for part in parts), chosen)
        yield arm, own, read(own, unusual, transfer.reads), maps


def name(workshop: Workshop, train: ImageSet, validation: ImageSet, chosen: Recipe) -> None:
    finetune(workshop, train, validation, chosen.transfer)


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
    found = []
    for _ in range(TASKS):
        shots, known, queries, requested = drawn(labels, np.unique(labels), rng)
        learnt = prototypes.fit(points[shots], known, distance, blocks)
        found.append((learnt.logits(points[queries]).argmax(axis=1) == requested).mean())
    return np.array(found)


def drawn(labels: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A task: the shots and their labels, the queries and theirs."""
    of_class = [rng.choice(np.flatnonzero(labels == label), SHOTS + QUERIES, replace=False) for label in classes]
    known, requested = (np.repeat(np.arange(len(classes)), count) for count in (SHOTS, QUERIES))
    return (
        np.concatenate([each[:SHOTS] for each in of_class]),
        known,
        np.concatenate([each[SHOTS:] for each in of_class]),
        requested,
    )


def calibration_line(points: np.ndarray, labels: np.ndarray, blocks: list[int], seed: int) -> str:
    """In words: what is said of shots that are left out, beside what becomes of the queries."""
    rng = np.random.default_rng(2000 + seed)
    rows = []
    for _ in range(TASKS // 3):
        shots, known, queries, requested = drawn(labels, np.unique(labels), rng)
        left_out = prototypes.left_out(points[shots], known, "mahalanobis", blocks)
        hits = int((left_out.argmax(axis=1) == known).sum())
        logits = prototypes.fit(points[shots], known, "mahalanobis", blocks).logits(points[queries])
        fitted = temperature.fit(left_out, known, temperature.PROTOTYPES)
        sure = probabilities(logits, fitted).max(axis=1).mean()
        true = (logits.argmax(axis=1) == requested).mean()
        rows.append((hits / len(known), true, sure, at_least(hits, len(known)) <= true))
    stated, true, sure, inside = np.mean(rows, axis=0)
    return (
        f"left out {stated:.4f}, queries {true:.4f}, mean confidence {sure:.4f}; the stated bound holds in "
        f"{inside:.0%} of {len(rows)} tasks"
    )


def nearest(shops: list[Workshop], known: list[np.ndarray], images: ImageSet, reads: str, blocks: list[int]) -> str:
    """In words: over tasks of any classes, the encoder that is nearest beside a random one and the best."""
    codes, points = ([read(workshop, images, tensor) for workshop in shops] for tensor in ("embedding", reads))
    rng = np.random.default_rng(3000)
    rows = []
    for _ in range(TASKS):
        classes = rng.choice(len(images.classes), len(images.classes) // 2, replace=False)
        shots, labels, queries, requested = drawn(images.labels, classes, rng)
        far = [tasks.distance(own[shots], theirs) for own, theirs in zip(codes, known, strict=True)]
        learnt = [prototypes.fit(each[shots], labels, "mahalanobis", blocks) for each in points]
        reached = [
            (each.logits(own[queries]).argmax(axis=1) == requested).mean()
            for each, own in zip(learnt, points, strict=True)
        ]
        rows.append((reached[int(np.argmin(far))], np.mean(reached), max(reached)))
    chosen, random, best = np.mean(rows, axis=0)
    gains = np.array([row[0] - row[1] for row in rows])
    error = 1.96 * gains.std() / np.sqrt(len(gains))
    return (
        f"of {len(shops)} encoders the nearest {chosen:.4f}, a random one {random:.4f}, the best for each task "
        f"{best:.4f}; nearest less random {gains.mean():+.4f} ± {error:.4f}"
    )
