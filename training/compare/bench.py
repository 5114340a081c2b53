"""Whether transfer helped: the arms that could embarrass it, at several label budgets and seeds, with intervals."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.compare import results as comparison
from training.compare.arms import ARMS
from training.compare.results import Result
from training.data.imageset import ImageSet
from training.data.material import Material, gather
from training.data.splits import some_of_each
from training.errors import TrainingError
from training.learning import generate
from training.learning.inference import accuracy_of, in_batches, read
from training.learning.labels import finetune
from training.learning.normalisation import settle
from training.learning.pretrain import pretrain
from training.learning.workshop import Workshop, workshop
from training.measure.probes import Probe
from training.progress import say
from training.recipe import FullMode, LabelMode, Recipe
from training.run import recipe_of

BUDGETS: tuple[int | None, ...] = (1, 10, 100, 1000, None)  # labels per class; None is all there are
_WHOLE = FullMode(epochs=10, rate=2e-3, schedule="one-cycle")  # the usual for a small network
_FEWEST_STEPS = 300  # of training a whole network: few labels are gone through often
_DRAWN = 1  # examples that are drawn for each that has a label
_RESULTS = "results.jsonl"


def folder_of(recipe: Recipe) -> Path:
    return Path("runs") / f"compare-{recipe.name}"


def compare(
    recipe: Recipe,
    folder: Path,
    arms: Sequence[str] | None = None,
    budgets: Sequence[int | None] | None = None,
    seeds: int = 3,
) -> Path:
    """The page of the comparison; beside it the numbers as JSON and as Markdown.

    No arm sees a label beyond its budget, nor chooses anything by the test images. A comparison that was interrupted
    goes on where it was.
    """
    if recipe.transfer.adapts:
        raise TrainingError(f"transfer.mode={recipe.transfer.mode}: the arms of a comparison learn the target's labels")
    done = _open(folder, recipe)
    material = gather(recipe)
    if len(material.target.classes) < 2:
        raise TrainingError(f"{recipe.target}: {len(material.target.classes)} classes; a comparison needs at least two")
    fewest = int(np.bincount(material.train.labels, minlength=len(material.train.classes)).min())
    asked = [budget for budget in budgets or BUDGETS if budget is None or budget < fewest]
    if not asked:
        raise TrainingError(f"the smallest class has {fewest} images to train on: ask for smaller budgets, or for all")
    for budget in set(budgets or BUDGETS) - set(asked):
        say(f"note: no {budget} labels per class: the smallest class has {fewest} images to train on")
    arms = [arm for arm in arms or ARMS if not (material.one_domain and arm == "target")]  # it would be `source` again
    for seed in range(seeds):
        left = [(arm, budget) for arm in arms for budget in asked if not any(r.is_of(arm, budget, seed) for r in done)]
        bench = _Bench(recipe, material, seed, folder)
        for number, (arm, budget) in enumerate(left, 1):
            rows = np.arange(len(material.train)) if budget is None else some_of_each(material.train, budget, seed)
            found = Result(arm, budget, len(rows), seed, bench.accuracy(arm, rows))
            with (folder / _RESULTS).open("a") as file:
                file.write(json.dumps(found.__dict__) + "\n")
            done.append(found)
            told = f"{arm} with {found.labels:,} labels: {found.accuracy:.4f}"
            say(f"seed {seed + 1} of {seeds}, {number} of {len(left)}: {told}")
    return comparison.write(folder, recipe, done, len(material.test))


def _open(folder: Path, recipe: Recipe) -> list[Result]:
    """What an interrupted comparison of the same recipe has found."""
    stated = folder / "recipe.json"
    if stated.is_file() and recipe_of(folder) != recipe:
        raise TrainingError(f"{folder}: a comparison of another recipe, or other --set values; name another with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stated.write_text(recipe.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}; name another with --out") from None
    results = folder / _RESULTS
    lines = results.read_text().splitlines(keepends=True) if results.is_file() else []
    return [Result(**json.loads(line)) for line in lines if line.endswith("\n")]  # a torn last line is done again


@dataclass
class _Bench:
    """What the arms of one seed share: each network is pretrained once, each set of maps read once."""

    recipe: Recipe
    material: Material
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        self._points: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def accuracy(self, arm: str, rows: np.ndarray) -> float:
        """On all test images, in torch, after learning from the labels of these training images."""
        labelled = self.material.train.take(rows)
        if arm in ("finetuned", "scratch", "generated"):
            return self._trained(arm, labelled)
        train, test = self._features(arm)
        probe = Probe(train[rows], labelled.labels, len(labelled.classes), self.seed)
        return probe.accuracy(test, self.material.test.labels)

    def _features(self, arm: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) of all training images and of the test images."""
        if arm not in self._points:
            self._points = {}  # one arm at a time: they are large
            m = self.material
            if arm == "pixels":
                both = [in_batches(lambda pixels: pixels.flatten(1) / 255, part.images) for part in (m.train, m.test)]
            else:
                shop = self._workshop(arm)
                self._prepare(shop, arm)
                both = [read(shop, images, self.recipe.transfer.reads) for images in (m.train, m.test)]
            self._points[arm] = both[0], both[1]
        return self._points[arm]

    def _workshop(self, what: str) -> Workshop:
        seeded = self.recipe.model_copy(update={"seed": self.seed})
        return workshop(seeded, self.material.spec.shape, self._own(what), untrained=what != "source")

    def _own(self, what: str) -> Path:
        return self.folder / f"seed-{self.seed}" / what

    def _prepare(self, shop: Workshop, arm: str) -> None:
        m, stage = self.material, self.recipe.pretrain
        if arm == "random":
            settle(shop, m.source_train)
        elif arm == "target":
            pretrain(shop, m.train, m.validation, stage)
        else:
            pretrain(shop, m.source_train, m.source_validation, stage)

    def _trained(self, arm: str, labelled: ImageSet) -> float:
        """The whole network, labels alone; the epochs are as many as give few labels enough steps."""
        own = f"{arm}-{len(labelled)}"
        if arm == "finetuned":
            shop = self._workshop("source")
            self._prepare(shop, "source")
            shop = shop.kept_in(self._own(own))
        else:
            shop = self._workshop(own)
        seen = self._with_drawn(labelled) if arm == "generated" else labelled
        mode = self.recipe.transfer
        weighted = isinstance(mode, LabelMode) and mode.class_weights
        if isinstance(mode, LabelMode) and not mode.freezes:
            stage = mode.as_full()
        else:  # its settings were made for a head alone
            stage = _WHOLE.model_copy(update={"reads": mode.reads, "class_weights": weighted})
        per_epoch = math.ceil(len(seen) / stage.batch)
        epochs = max(stage.epochs, math.ceil(_FEWEST_STEPS / per_epoch))
        stage = stage.model_copy(update={"epochs": epochs})
        torch.manual_seed(self.seed)
        head = finetune(shop, seen, labelled, stage)
        return accuracy_of(shop.net, head, stage.reads, self.material.test)

    def _with_drawn(self, labelled: ImageSet) -> ImageSet:
        """In one domain the source's labels are beyond the budget: the generator is pretrained without."""
        m, shop = self.material, self._workshop("generator")
        torch.manual_seed(self.seed)
        generator = generate.untrained(m.spec.shape, 0 if m.one_domain else len(m.source_train.classes))
        generate.pretrain(shop, generator, m.source_train)
        torch.manual_seed(self.seed)  # whether it was pretrained now or before
        shop = shop.kept_in(self._own(f"generator-{len(labelled)}"))
        generator = generate.adapted(shop, generator, labelled)
        torch.manual_seed(self.seed)
        return generate.with_drawn(shop, generator, labelled, max(1, _DRAWN * len(labelled) // len(labelled.classes)))
