"""The arms of a comparison: for each a function from the labelled images to its accuracy on the test images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from training.compare.arms import BACKBONE
from training.data.imageset import ImageSet
from training.data.material import Material
from training.data.resolution import choose, examined
from training.data.splits import list_training_part, train_and_held_out, train_and_test
from training.errors import TrainingError
from training.learning import generate
from training.learning.distil import distil
from training.learning.finetune import finetune, full
from training.learning.inference import accuracy_of, in_batches, read
from training.learning.linear import head_on
from training.learning.normalisation import recompute_statistics
from training.learning.pretrain import pretrain
from training.learning.workshop import Workshop, open_workshop
from training.measure.probes import Probe
from training.networks import weights
from training.networks.autoencoder import Autoencoder, build
from training.recipe import DistilMode, FullMode, Input, LabelMode, LinearMode, Network, Recipe

_WHOLE = FullMode(epochs=10, rate=2e-3, schedule="one-cycle")  # usual for a small network
_FEWEST_STEPS = 300  # of training a whole network: few labels take many epochs
_DRAWN = 1  # drawn examples for each labelled one

LITE0 = Network(backbone="efficientnet-lite0")
# At least what the weights were trained at, but never more than four times what the images have.
_TAKEN = Input(height="auto", width="auto", short_side=224, channels=3, resize="pad")

Points = tuple[np.ndarray, np.ndarray]  # (N, D) of the training images, and of the test images


class Features(NamedTuple):
    """What a backbone gives."""

    train: np.ndarray  # (N, D)
    test: np.ndarray
    maps: list[int]  # the sizes of the parts that D joins


@dataclass
class Bench:
    """What the arms of one seed share: each network is pretrained once, each set of points is computed once."""

    recipe: Recipe
    material: Material
    seed: int
    folder: Path
    shared: dict[str, Features] = field(default_factory=dict)  # by arm, what no seed changes: of all benches
    _points: dict[str, Points] = field(default_factory=dict)

    def own(self, name: str) -> Path:
        return self.folder / f"seed-{self.seed}" / name

    def open_workshop(self, name: str, untrained: bool = True) -> Workshop:
        seeded = self.recipe.model_copy(update={"seed": self.seed})
        return open_workshop(seeded, self.material.spec.shape, self.own(name), untrained)

    def of(self, net: Autoencoder) -> Workshop:
        """A workshop to read images with a network that is not the recipe's."""
        workshop = self.open_workshop(BACKBONE)
        net.encoder.to(device=workshop.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        return replace(workshop, net=net)

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


def backbone(bench: Bench, rows: np.ndarray) -> float:
    """As the recipe photos does it. The images are read again, at the size that suits the network: the same images, in
    the same parts."""

    def compute() -> Features:
        recipe, m = bench.recipe, bench.material
        listed = list_training_part(recipe.target, recipe.split, recipe.seed)
        spec = choose(_TAKEN, examined(listed, recipe.target), recipe.target).spec()
        whole, test = train_and_test(recipe.target, spec, recipe.split, recipe.seed)
        train, _, _ = train_and_held_out(whole, recipe.split, recipe.seed)
        if not (np.array_equal(train.labels, m.train.labels) and np.array_equal(test.labels, m.test.labels)):
            raise TrainingError(f"{recipe.target}: its images have changed since the other arms read them")
        workshop = bench.of(build(LITE0, spec.shape))
        points = read(workshop, train, "features"), read(workshop, test, "features")
        return Features(*points, maps=workshop.net.sizes_read("features"))

    if BACKBONE not in bench.shared:
        bench.shared[BACKBONE] = compute()
    points, labels = bench.shared[BACKBONE], bench.material.train.labels[rows]
    head = head_on(points.train[rows], labels, classes=len(bench.material.train.classes), maps=points.maps)
    with torch.no_grad():
        found = head(torch.from_numpy(points.test)).argmax(dim=1).numpy()
    return float(np.mean(found == bench.material.test.labels))


def missing(arm: str) -> str | None:
    """Why an arm cannot be run here, if it cannot."""
    if arm != BACKBONE:
        return None
    try:
        weights.path_of(LITE0)
    except TrainingError as error:
        return str(error)
    return None


METHODS: dict[str, Callable[[Bench, np.ndarray], float]] = {
    "pixels": pixels,
    "random": random,
    "source": source,
    "finetuned": finetuned,
    "scratch": scratch,
    "generated": generated,
    "target": target,
    BACKBONE: backbone,
}
