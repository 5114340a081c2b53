"""The arms of a comparison: for each a function from the labelled images to its accuracy on the test images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from training.data.imageset import ImageSet
from training.data.material import Material
from training.learning import generate
from training.learning.distil import distil
from training.learning.finetune import finetune, full
from training.learning.inference import accuracy_of, in_batches, read
from training.learning.normalisation import recompute_statistics
from training.learning.pretrain import pretrain
from training.learning.workshop import Workshop, open_workshop
from training.measure.probes import Probe
from training.recipe import DistilMode, FullMode, LabelMode, LinearMode, Recipe

_WHOLE = FullMode(epochs=10, rate=2e-3, schedule="one-cycle")  # usual for a small network
_FEWEST_STEPS = 300  # of training a whole network: few labels take many epochs
_DRAWN = 1  # drawn examples for each labelled one

Points = tuple[np.ndarray, np.ndarray]  # (N, D) of the training images, and of the test images


@dataclass
class Bench:
    """What the arms of one seed share: each network is pretrained once, each set of points is computed once."""

    recipe: Recipe
    material: Material
    seed: int
    folder: Path
    _points: dict[str, Points] = field(default_factory=dict)

    def own(self, name: str) -> Path:
        return self.folder / f"seed-{self.seed}" / name

    def open_workshop(self, name: str, untrained: bool = True) -> Workshop:
        seeded = self.recipe.model_copy(update={"seed": self.seed})
        return open_workshop(seeded, self.material.spec.shape, self.own(name), untrained)

    def pretrained_on_source(self) -> Workshop:
        workshop, m = self.open_workshop("source", untrained=False), self.material
        if isinstance(self.recipe.transfer, DistilMode):
            distil(workshop, m, self.recipe.pretrain, self.recipe.transfer)
        else:
            pretrain(workshop, m.source_train, m.source_validation, self.recipe.pretrain)
        return workshop

    def points(self, arm: str, compute: Callable[[], Points]) -> Points:
        """Points are large: only one arm's are kept."""
        if arm not in self._points:
            self._points.clear()
            self._points[arm] = compute()
        return self._points[arm]

    def features(self, workshop: Workshop) -> Points:
        m, tensor = self.material, self.recipe.transfer.reads
        return read(workshop, m.train, tensor), read(workshop, m.test, tensor)

    def probe(self, rows: np.ndarray, points: Points) -> float:
        """Accuracy of logistic regression on the points of these training images."""
        train, test = points
        labels, classes = self.material.train.labels[rows], len(self.material.train.classes)
        return Probe(train[rows], labels, classes, self.seed).accuracy(test, self.material.test.labels)

    def train_whole(
        self, workshop: Workshop, images: ImageSet, validation: ImageSet, pretrained: bool = False
    ) -> float:
        """Accuracy of the whole network, trained on labels alone; few images take more epochs."""
        mode = self.recipe.transfer
        weighted = isinstance(mode, LabelMode | LinearMode) and mode.class_weights
        if isinstance(mode, LabelMode) and not mode.freezes:
            stage = mode.as_full()
        else:  # its settings suit a head alone
            stage = _WHOLE.model_copy(update={"reads": mode.reads, "class_weights": weighted})
        per_epoch = math.ceil(len(images) / stage.batch)
        epochs = max(stage.epochs, math.ceil(_FEWEST_STEPS / per_epoch))
        stage = stage.model_copy(update={"epochs": epochs})
        torch.manual_seed(self.seed)
        if pretrained:
            head = full(workshop, images, validation, stage)
        else:
            head = finetune(workshop, images, validation, stage.as_scratch())
        return accuracy_of(workshop.net, head, stage.reads, self.material.test)


def pixels(bench: Bench, rows: np.ndarray) -> float:
    def compute() -> Points:
        train, test = (
            in_batches(lambda images: images.flatten(1) / 255, part.images)
            for part in (bench.material.train, bench.material.test)
        )
        return train, test

    return bench.probe(rows, bench.points("pixels", compute))


def random(bench: Bench, rows: np.ndarray) -> float:
    def compute() -> Points:
        workshop = bench.open_workshop("random")
        recompute_statistics(workshop, bench.material.source_train)
        return bench.features(workshop)

    return bench.probe(rows, bench.points("random", compute))


def source(bench: Bench, rows: np.ndarray) -> float:
    return bench.probe(rows, bench.points("source", lambda: bench.features(bench.pretrained_on_source())))


def target(bench: Bench, rows: np.ndarray) -> float:
    def compute() -> Points:
        workshop, m = bench.open_workshop("target"), bench.material
        pretrain(workshop, m.train, m.validation, bench.recipe.pretrain)
        return bench.features(workshop)

    return bench.probe(rows, bench.points("target", compute))


def finetuned(bench: Bench, rows: np.ndarray) -> float:
    labelled = bench.material.train.take(rows)
    workshop = bench.pretrained_on_source().kept_in(bench.own(f"finetuned-{len(labelled)}"))
    return bench.train_whole(workshop, labelled, labelled, pretrained=True)


def scratch(bench: Bench, rows: np.ndarray) -> float:
    labelled = bench.material.train.take(rows)
    return bench.train_whole(bench.open_workshop(f"scratch-{len(labelled)}"), labelled, labelled)


def generated(bench: Bench, rows: np.ndarray) -> float:
    labelled = bench.material.train.take(rows)
    workshop = bench.open_workshop(f"generated-{len(labelled)}")
    return bench.train_whole(workshop, _with_drawn(bench, labelled), labelled)


def _with_drawn(bench: Bench, labelled: ImageSet) -> ImageSet:
    """If source and target are one, the generator pretrains without labels: the source's exceed the budget."""
    m, workshop = bench.material, bench.open_workshop("generator")
    torch.manual_seed(bench.seed)
    generator = generate.untrained(m.spec.shape, 0 if m.one_domain else len(m.source_train.classes))
    generate.pretrain(workshop, generator, m.source_train)
    torch.manual_seed(bench.seed)  # the same whether it was pretrained now or in an earlier call
    workshop = workshop.kept_in(bench.own(f"generator-{len(labelled)}"))
    generator = generate.adapted(workshop, generator, labelled)
    torch.manual_seed(bench.seed)
    return generate.with_drawn(workshop, generator, labelled, max(1, _DRAWN * len(labelled) // len(labelled.classes)))


METHODS: dict[str, Callable[[Bench, np.ndarray], float]] = {
    "pixels": pixels,
    "random": random,
    "source": source,
    "finetuned": finetuned,
    "scratch": scratch,
    "generated": generated,
    "target": target,
}
