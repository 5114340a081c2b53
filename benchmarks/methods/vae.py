"""The variational autoencoder: what a test image costs, and whether its score falls for what is merely simple.

Digits and garments upside down are to be told from garments by the exported bundle's anomaly score, on all test images.
Beside it the likelihood itself, which ranks by how simple an image is, and the reconstruction's error.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.bundle import Bundle, load
from benchmarks.bars import Bar
from training import recipe, run
from training.compare.results import student
from training.data.imageset import ImageSet
from training.data.read import read_part
from training.learning.stages import load_learnt
from training.measure import likelihood
from training.measure.detection import auroc
from training.measure.outputs import outputs_of

SEEDS = 3
_DRAWS = 4  # of the code, where each image's bound is compared with others


def measure(out: Path) -> Iterator[Bar]:
    found: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        folder = out / f"seed-{seed}"
        bundle = _trained(recipe.load("vae", [f"seed={seed}"]), out / "models", folder)
        for name, value in _measured(bundle, folder):
            found.setdefault(name, []).append(value)
            print(f"        seed {seed}, {name}: {value:.4f}", flush=True)
    for name, values in found.items():
        mean, low, high = student(values)
        print(f"        {name}: {mean:.4f} ± {(high - low) / 2:.4f}", flush=True)
    yield Bar("Fashion-MNIST against MNIST, AUROC", float(np.mean(found["score, digits"])), 0.99, 0.999)
    yield Bar("the same against its own images upside down", float(np.mean(found["score, upside down"])), 0.85, 0.92)


def _trained(chosen: recipe.Recipe, models: Path, folder: Path) -> Bundle:
    """The bundle; one that was published from there before is not made again."""
    if (folder / run.DONE_FILE).is_file():
        return load(Path((folder / run.DONE_FILE).read_text().splitlines()[-1]), threads=1)
    return load(run.run(chosen, models, folder, resume=folder.exists()), threads=1)


def _measured(bundle: Bundle, folder: Path) -> Iterator[tuple[str, float]]:
    chosen = recipe.read(folder)
    garments = read_part("fashion-mnist", "test", bundle.manifest.input)
    unusual = {
        "digits": read_part("mnist", "test", bundle.manifest.input),
        "upside down": replace(garments, images=np.ascontiguousarray(np.asarray(garments.images)[:, ::-1])),
    }
    stated = {metric.name: metric.value for metric in bundle.manifest.metrics}
    yield from ((name, stated[name]) for name in ("negative_elbo", "nll_bound", "accuracy", "false_alarm_rate"))
    net = load_learnt(chosen, bundle.manifest.input.shape, folder).net

    def scored(images: ImageSet) -> dict[str, np.ndarray]:
        served = outputs_of(bundle, images, "score", ("scores", "errors"))
        assert served.scores is not None
        assert served.errors is not None
        costs = likelihood.bounds(net, chosen.objective, images, _DRAWS)[:, 0]
        return {"score": served.scores, "likelihood": costs, "reconstruction": served.errors}

    normal = scored(garments)
    for name, images in unusual.items():
        for by, scores in scored(images).items():
            yield f"{by}, {name}", auroc(normal[by], scores)
