"""Episodic training: the encoder learns from tasks of a few images each, to serve classes it has not seen.

Prototypical networks (Snell et al. 2017): each step draws an episode, that is some classes, of each a few shots and
some queries; the queries are classified by the means of the shots, as score.prototypes does with the cosine.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.learning.augment import augmented, erased
from training.learning.finetune import train_head
from training.learning.fit import Task, fit
from training.learning.workshop import Workshop
from training.networks.head import Head
from training.recipe import Augment, EpisodicMode
from training.score.prototypes import SCALE, block_scales

SYMMETRIES = 8  # of a square
_VALIDATION_EPISODES = 50  # after each epoch


class Episodes:
    """Draws episodes from a set, with torch's random numbers: a resumed run draws the same ones."""

    def __init__(self, data: ImageSet, transfer: EpisodicMode, blocks: Sequence[int] = ()) -> None:
        """`blocks` are the sizes of the maps that a point joins, as in score.prototypes."""
        self._blocks = blocks
        self._shots, self._queries, self._symmetries = transfer.shots, transfer.queries, transfer.symmetries
        of_class = [torch.from_numpy((data.labels == label).nonzero()[0]) for label in range(len(data.classes))]
        for name, found in zip(data.classes, of_class, strict=True):
            if len(found) < self.each:
                raise TrainingError(
                    f"transfer.mode=episodic: {name} has {len(found)} images to train or validate on; an "
                    f"episode takes {self._shots} shots and {self._queries} queries of a class: set them lower"
                )
        self._of_class = of_class
        kinds = len(of_class) * (SYMMETRIES if self._symmetries else 1)
        self.way = min(transfer.way, kinds)
        if self.way < 2:
            raise TrainingError("transfer.mode=episodic: an episode needs two classes, the images have one")
        self._kinds = kinds

    @property
    def each(self) -> int:
        """Images of one class in an episode: the shots, then the queries."""
        return self._shots + self._queries

    @property
    def size(self) -> int:
        return self.way * self.each

    def draw(self) -> tuple[Tensor, Tensor]:
        """(indices of `way` · `each` images, class after class, and the symmetry of each)."""
        kinds = torch.randperm(self._kinds)[: self.way]
        chosen = [self._of_class[int(kind) % len(self._of_class)] for kind in kinds]
        indices = torch.cat([found[torch.randperm(len(found))[: self.each]] for found in chosen])
        turns = torch.div(kinds, len(self._of_class), rounding_mode="floor")
        return indices, turns.repeat_interleave(self.each)

    def loss(self, points: Tensor) -> Tensor:
        """(way · each, D), in the order of `draw` → the mean cross-entropy of classifying the queries."""
        points = points.float().reshape(self.way, self.each, -1)
        means = points[:, : self._shots].mean(dim=1)
        centre = means.mean(dim=0)
        points, means = points - centre, means - centre
        sizes = self._blocks or (points.shape[2],)
        scales = block_scales(points[:, : self._shots].flatten(0, 1), sizes)
        scale = torch.cat([points.new_ones(size) * each for size, each in zip(sizes, scales, strict=True)])
        queries = F.normalize(points[:, self._shots :] * scale, dim=2).flatten(0, 1)
        logits = SCALE * queries @ F.normalize(means * scale, dim=1).T
        return F.cross_entropy(logits, torch.arange(self.way).repeat_interleave(self._queries).to(logits.device))


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """(N, C, H, H), each image under one of the eight symmetries of a square; 0 leaves it as it is."""
    turns = turns.to(images.device).view(-1, 1, 1, 1)
    images = torch.where(turns % 2 == 1, images.flip(3), images)
    images = torch.where(turns // 2 % 2 == 1, images.flip(2), images)
    return torch.where(turns // 4 == 1, images.transpose(2, 3), images)


def episodic(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: EpisodicMode) -> Head:
    """The encoder learns by episodes; then a head learns on its outputs."""
    train_encoder(workshop, train, validation, transfer)
    return train_head(workshop, train, validation, transfer)


def train_encoder(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: EpisodicMode) -> None:
    """The validation loss is the mean over the same episodes after each epoch."""
    blocks = workshop.net.sizes_read(transfer.reads)
    train_episodes = Episodes(train, transfer, blocks)
    validation_episodes = Episodes(
        validation, transfer.model_copy(update={"queries": _fitting(validation, transfer)}), blocks
    )

    def loss(data: ImageSet, episodes: Episodes, augment: Augment) -> Tensor:
        indices, turns = episodes.draw()
        images = workshop.unit(data.images[indices.numpy()])
        images = augmented(turned(images, turns) if transfer.symmetries else images, augment)
        with workshop.autocast():
            return episodes.loss(workshop.net.read(erased(images, augment), transfer.reads))

    def held_out() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses = [loss(validation, validation_episodes, Augment()).item() for _ in range(_VALIDATION_EPISODES)]
        return sum(losses) / len(losses)

    learning = {name: workshop.net.blocks()[name] for name in workshop.net.blocks_read(transfer.reads)}
    stage = transfer.model_copy(update={"batch": train_episodes.size})  # an epoch sees as many images as there are
    task = Task(
        "episodes",
        learning,
        loss=lambda *_: loss(train, train_episodes, transfer.augment),
        images=len(train),
        validate=held_out,
    )
    fit(task, stage, workshop.journal, workshop.checkpoints)


def _fitting(data: ImageSet, transfer: EpisodicMode) -> int:
    """Queries per class: as many as the rarest class has images besides its shots, at most those of the recipe."""
    rarest = int(np.bincount(data.labels, minlength=len(data.classes)).min())
    return max(1, min(transfer.queries, rarest - transfer.shots))
