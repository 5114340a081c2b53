"""Learning to find what was pasted: a network that marks defects, or one for each fold, which has not seen it.

An image's score tells something of new images only if the network has not learnt from it. So each fold has a network
that learns from the others alone; all of them are published together, and score a new image by their mean.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.folds import folds_of
from training.data.imageset import ImageSet
from training.data.material import Material
from training.errors import TrainingError
from training.learning.augment import augmented
from training.learning.fit import Task, fit
from training.learning.pasting import pasted
from training.learning.workshop import Workshop
from training.networks.encoded import Encoder
from training.networks.unet import Together
from training.progress import say
from training.recipe import Augment, PasteMode, Recipe
from training.score import marks

_OVERLAP = 0.5  # weight of the overlap of marks and defects, beside the cross-entropy of places
_VALIDATED = 64  # images, drawn once


def learn_to_find(workshop: Workshop, material: Material, recipe: Recipe) -> None:
    """Train the workshop's network; or, with folds, its members, each on the images of the other folds."""
    mode = recipe.transfer
    assert isinstance(mode, PasteMode)
    encoder, normals = workshop.net.encoder, material.calibration
    if not isinstance(encoder, Together):
        _train(workshop, "paste", material.train, held_out=material.validation, mode=mode)
        return
    folds, how = folds_of(normals, recipe.anomaly.folds, recipe.split, recipe.seed)
    marks.refuse_single(folds)
    say(f"{len(normals):,} normal images in {recipe.anomaly.folds} folds, {how}")
    for number, member in enumerate(encoder.members):
        assert isinstance(member, Encoder)
        own = replace(workshop, net=replace(workshop.net, encoder=member))
        held, others = (normals.take(np.flatnonzero(rows)) for rows in (folds == number, folds != number))
        _train(own, f"paste-{number + 1}", others, held_out=held, mode=mode)


def _train(workshop: Workshop, name: str, train: ImageSet, held_out: ImageSet, mode: PasteMode) -> None:
    """`held_out` only tells how it goes: the last epoch is kept."""
    if len(train) < 2:
        raise TrainingError("transfer.mode=paste: pieces of one image are pasted into another: two images are needed")

    def drawn(data: ImageSet, rows: np.ndarray, augment: Augment) -> tuple[Tensor, Tensor]:
        images = augmented(workshop.unit(_cut(data.images[np.sort(rows)], mode.side)), augment)
        return pasted(images, most=mode.pieces, sound=mode.sound, seamless=mode.seamless, lines=mode.lines)

    def loss(batch: Tensor, _: float) -> Tensor:
        rows = torch.randint(len(train), (len(batch),)) if len(batch) > len(train) else torch.randperm(len(train))
        return _loss(workshop, *drawn(train, rows[: len(batch)].numpy(), mode.augment))

    with torch.random.fork_rng():  # the same pieces after every epoch; training's own random numbers are untouched
        torch.manual_seed(0)
        rows = torch.split(torch.randint(len(held_out), (_VALIDATED,)), mode.batch)
        shown = [drawn(held_out, part.numpy(), Augment()) for part in rows]
    task = Task(
        name,
        {"encoder": workshop.net.encoder},
        loss=loss,
        images=mode.samples,
        validate=lambda: sum(_loss(workshop, *each).item() * len(each[0]) for each in shown) / _VALIDATED,
        keep="last",
    )
    fit(task, mode, workshop.journal, workshop.checkpoints)


def _loss(workshop: Workshop, images: Tensor, changed: Tensor) -> Tensor:
    """Cross-entropy of the places, and the share of marks and defects that do not overlap."""
    with workshop.autocast():
        logits = workshop.net.encode(images.contiguous(memory_format=torch.channels_last)).marks
    assert logits is not None
    logits = logits.float()
    goal = covering(changed, logits.shape[2:])
    share = logits.sigmoid()
    overlap = (2 * (share * goal).sum() + 1) / (share.sum() + goal.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, goal) + _OVERLAP * (1 - overlap)


def covering(changed: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(N, H, W) bool → (N, 1, *sides): 1 where a place has a changed pixel."""
    return F.adaptive_max_pool2d(changed[:, None].float(), sides)


def _cut(images: np.ndarray, side: int) -> np.ndarray:
    """(N, H, W, C) → (N, h, w, C): of each a part anywhere, no side longer than `side`; 0: whole."""
    height, width = (min(each, side or each) for each in images.shape[1:3])
    if (height, width) == images.shape[1:3]:
        return images
    tops, lefts = (
        torch.randint(whole - part + 1, (len(images),)).tolist()
        for whole, part in zip(images.shape[1:3], (height, width), strict=True)
    )
    return np.stack(
        [each[top : top + height, left : left + width] for each, top, left in zip(images, tops, lefts, strict=True)]
    )
