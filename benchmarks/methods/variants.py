"""Sparse and denoising autoencoders beside the plain one: the same dense network, the same digits, another objective.

The code is as wide as the layer before it, so that nothing but the objective keeps the network from copying. Whether it
does shows in what is no digit: a copy leaves nothing of any image, what knows digits alone leaves much of all others.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.bars import Bar
from training import recipe
from training.data.imageset import ImageSet
from training.data.material import Material, gather
from training.data.splits import some_of_each
from training.learning.inference import in_batches, read
from training.learning.pretrain import pretrain
from training.learning.workshop import Workshop, open_workshop
from training.measure.intervals import student
from training.measure.probes import Probe

SEEDS = 3
_LINEAR = ["objective.kl=0", "network.activation=linear"]
OBJECTIVES = {
    "plain": [*_LINEAR],
    "denoising": [*_LINEAR, "objective.noise=0.3"],
    "sparse": [],  # as the recipe has it
    "l1": ["objective.kl=0", "objective.l1=0.01", "network.activation=relu"],
}
# As the recipe, but for a code as wide as the layer before it; larger batches and bf16 for the clock.
_LEAN = ["network.latent=512", "pretrain.batch=512", "pretrain.rate=2e-3", "pretrain.epochs=10", "precision=bf16"]
_EACH = 1000  # labelled garments of each class that a probe learns from
_DEAD = 0.01  # of the spread of the code's units on average, below which a unit says nothing


def measure(out: Path) -> Iterator[Bar]:
    found: dict[str, dict[str, list[float]]] = {name: {} for name in OBJECTIVES}
    for seed in range(SEEDS):
        material = gather(recipe.load("sparse", [f"seed={seed}"]))
        for name, changes in OBJECTIVES.items():
            chosen = recipe.load("sparse", [*_LEAN, *changes, f"seed={seed}"])
            workshop = open_workshop(chosen, material.spec.shape, out / f"{name}-{seed}", untrained=False)
            pretrain(workshop, material.source_train, material.source_validation, chosen.pretrain)
            for what, value in _measured(workshop, material, seed):
                found[name].setdefault(what, []).append(value)
    for name, measures in found.items():
        for what, values in measures.items():
            mean, low, high = student(values)
            print(f"        {name}, {what}: {mean:.4f} ± {(high - low) / 2:.4f}", flush=True)
    for name in ("denoising", "sparse", "l1"):
        both = zip(found[name]["probe"], found["plain"]["probe"], strict=True)
        gain = student([one - other for one, other in both])
        print(f"        {name}, probe less the plain one's: {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})")
        yield Bar(f"{name}: probe accuracy less the plain autoencoder's, the interval's lower end", gain.low, 0.0, 0.02)


def _measured(workshop: Workshop, material: Material, seed: int) -> Iterator[tuple[str, float]]:
    labelled = material.train.take(some_of_each(material.train, _EACH, seed))
    probe = Probe(read(workshop, labelled, "embedding"), labelled.labels, len(labelled.classes), seed)
    yield "probe", probe.accuracy(read(workshop, material.test, "embedding"), material.test.labels)
    codes = read(workshop, material.source_test, "embedding")
    yield "dead units", dead_units(codes)
    yield "units in use", units_in_use(codes)
    digits, rng = material.source_test, np.random.default_rng(0)
    pixels = np.asarray(digits.images)
    sets = {
        "digits": digits,
        "garments": material.test,
        "digits, pixels shuffled": replace(digits, images=shuffled(pixels, rng)),
        "noise": replace(digits, images=rng.integers(0, 256, pixels.shape, np.uint8)),
    }
    yield from ((f"share left of {name}", share_left(workshop, images)) for name, images in sets.items())


def dead_units(codes: np.ndarray) -> float:
    """(N, D) → the share of units whose spread over images is next to nothing beside the others'."""
    spread = codes.std(axis=0)
    return float(np.mean(spread < _DEAD * spread.mean()))


def units_in_use(codes: np.ndarray) -> float:
    """(N, D) → the share of units that an image uses, mean over images: 1 where all are alike, 1/D where one is alone.

    (Σ|z|)² / (D Σz²); a normal code has 2/π.
    """
    total, squares = np.abs(codes).sum(axis=1), np.square(codes).sum(axis=1)
    return float(np.mean(np.square(total) / np.maximum(codes.shape[1] * squares, 1e-12)))


def shuffled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, H, W, C): the pixels of all images by one order, drawn once: as bright and as alike as digits are."""
    flat = images.reshape(len(images), -1)
    return np.ascontiguousarray(flat[:, rng.permutation(flat.shape[1])]).reshape(images.shape)


def share_left(workshop: Workshop, data: ImageSet) -> float:
    """The squared error as a share of the images' variance: 0 is a copy, 1 no better than their mean."""
    net = workshop.net

    def error(images: Tensor) -> Tensor:
        shown = workshop.unit(images)
        return (net.decoder(net.encode(shown).code).sigmoid() - shown).square().flatten(1).mean(1, keepdim=True)

    variance = np.mean(np.var(np.asarray(data.images) / 255, axis=0))
    return float(in_batches(error, data.images).mean() / variance)
