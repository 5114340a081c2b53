"""What networks say of images that they have not learnt from, fold by fold. Finished folds are kept in a folder."""

import shutil
from pathlib import Path

import numpy as np
import torch

from training import ranks
from training.data.material import Material
from training.data.storage import take
from training.errors import TrainingError
from training.learning.inference import read
from training.learning.label_loss import class_weights
from training.learning.linear import head_on
from training.learning.stages import learn
from training.learning.workshop import open_workshop
from training.measure.outputs import outputs_of
from training.progress import quiet, say
from training.publish.crossed import Crossed
from training.publish.draft import export
from training.recipe import LinearMode, Recipe
from training.score import anomaly

FOLDER = "folds"  # in the run's folder


class Crossing:
    """A recipe, crossed on the folds of its material. `folder` is the run's.

    Where the encoder is given and a linear head is all that is learnt, the images are encoded once; otherwise a network
    is trained for each fold.
    """

    def __init__(self, recipe: Recipe, material: Material, folder: Path) -> None:
        assert material.folds is not None
        if ranks.count() > 1:
            raise TrainingError("split.folds: folds are crossed by one process; start this command without torchrun")
        self.recipe, self.material, self.folds, self.run = recipe, material, material.folds, folder
        self._folder, self._parts = folder / FOLDER, list(material.folds)
        self._points: np.ndarray | None = None
        self.maps: tuple[int, ...] = ()  # of what a head reads, the sizes of the parts, once the images are encoded

    def __len__(self) -> int:
        """How many times something learns: folds by deals."""
        return len(self._parts)

    @property
    def encodes_once(self) -> bool:
        return isinstance(self.recipe.transfer, LinearMode) and self.recipe.encoder_is_given

    def held(self, number: int) -> np.ndarray:
        """(N,) bool: the images of a fold."""
        return self._parts[number][1]

    def is_known(self, number: int) -> bool:
        return self._file(number).is_file()

    def logits(self, number: int) -> np.ndarray:
        """(held images, K) of a fold; it is crossed first, if it has not been."""
        return self._known(number)["logits"]

    def everything(self) -> Crossed:
        classes = len(self.material.target.classes)
        logits = np.empty((len(self.folds.numbers), len(self.material.target), classes), np.float32)
        raw: np.ndarray | None = None
        for number, (deal, held) in enumerate(self._parts):
            found = self._known(number)
            logits[deal, held] = found["logits"]
            if deal == 0 and "distances" in found:
                if raw is None:
                    raw = np.empty((len(held), found["distances"].shape[1]))
                raw[held] = found["distances"]
        return Crossed(self.folds, logits, raw, self.material.target.truth)

    def _known(self, number: int) -> dict[str, np.ndarray]:
        path = self._file(number)
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            except (OSError, ValueError, EOFError):
                say(f"note: {path}: damaged: crossed again")
        found = self._by_one_encoder(number) if self.encodes_once else self._by_another_network(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}").open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]  # the names of arrays
        (path.parent / f".{path.name}").rename(path)
        return found

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.npz"

    def _by_one_encoder(self, number: int) -> dict[str, np.ndarray]:
        points, transfer, target = self.points(), self.recipe.transfer, self.material.target
        assert isinstance(transfer, LinearMode)
        held, others = (np.flatnonzero(rows) for rows in (self.held(number), ~self.held(number)))
        weights = class_weights(target.take(others)) if transfer.class_weights else None
        with quiet():
            head = head_on(
                np.asarray(take(points, others)),
                target.truth[others],
                classes=len(target.classes),
                weights=weights,
                maps=self.maps,
            )
        with torch.no_grad():
            return {"logits": head(torch.from_numpy(np.asarray(take(points, held)))).numpy()}

    def points(self) -> np.ndarray:
        """(N, D) what a head reads of the images, where the encoder is given."""
        if self._points is None:
            recipe = self.recipe
            self._folder.mkdir(parents=True, exist_ok=True)
            workshop = open_workshop(recipe, self.material.spec.shape, self._folder, recipe.transfer.untrained)
            self._points = read(workshop, self.material.target, recipe.transfer.reads)
            self.maps = tuple(workshop.net.sizes_read(recipe.transfer.reads))
        return self._points

    def _by_another_network(self, number: int) -> dict[str, np.ndarray]:
        held, folder = self.held(number), self._folder / f"{number}"
        say(
            f"fold {number + 1} of {len(self)}: {int((~held).sum()):,} images to learn from, {int(held.sum()):,} to say"
        )
        material = self.material.of_fold(held)
        folder.mkdir(parents=True, exist_ok=True)
        bundle = export(self.recipe, material, learn(self.recipe, material, folder)).bundle
        logits = outputs_of(bundle, material.test, "fold", ("logits",)).logits
        assert logits is not None  # the mode learns labels
        found = {
            "logits": logits,
            "distances": anomaly.distances_of_held(bundle, self.material.target, self.recipe.anomaly.distances, held),
        }
        shutil.rmtree(folder)
        return found
