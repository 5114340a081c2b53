"""Fine-tuning on the target's labels: a head alone, head and encoder, or both with the decoder."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.imageset import ImageSet
from training.learning.augment import augmented, erased
from training.learning.fit import Task, fit
from training.learning.inference import LEAST_SPREAD, mean_loss, moments, read
from training.learning.label_loss import LabelLoss, truth_of
from training.learning.mixing import mixed
from training.learning.objectives import reconstruction
from training.learning.teacher import Teacher
from training.learning.upper import Upper
from training.learning.workshop import Workshop
from training.networks import head as heads
from training.networks.head import Head
from training.recipe import (
    Augment,
    DistilMode,
    FullMode,
    LabelMode,
    MixingMode,
    MultitaskMode,
    ThawingMode,
)


def train_head(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: LabelMode) -> Head:
    """A classifier on the frozen encoder's outputs; it learns on standardised input, which is folded in at the end."""
    train_points, validation_points = read(workshop, train, transfer.reads), read(workshop, validation, transfer.reads)
    mean, std = moments(train_points, LEAST_SPREAD if workshop.net.published else 0)
    labels, validation_labels = truth_of(train), truth_of(validation)
    of_labels = LabelLoss.of(train, transfer.class_weights)
    head = heads.make(train_points.shape[1], len(train.classes), transfer.hidden)

    def loss(points: np.ndarray, truth: Tensor, batch: Tensor, smoothing: float) -> Tensor:
        standardised = (torch.from_numpy(points[batch.numpy()]) - mean) / std
        return of_labels(head(standardised), truth[batch], smoothing)

    task = Task(
        "head",
        {"head": head},
        loss=lambda batch, _: loss(train_points, labels, batch, transfer.smoothing),
        images=len(train_points),
        validate=lambda: mean_loss(
            lambda batch: loss(validation_points, validation_labels, batch, 0.0), len(validation_points)
        ),
    )
    fit(task, transfer, workshop.journal, workshop.checkpoints)
    with torch.no_grad():
        first = heads.reading(head)
        first.bias.sub_(first.weight @ (mean / std))
        first.weight.div_(std)
    return head


def multitask(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: MultitaskMode) -> Head:
    """Head, encoder and decoder together."""
    return finetune(workshop, train, validation, transfer, reconstruct=transfer.reconstruction)


def full(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: FullMode) -> Head:
    """Head and encoder; rates may fall towards the input."""
    shares = falling_rates(list(workshop.net.blocks()), transfer.slower_below)
    return finetune(workshop, train, validation, transfer, rate_shares=shares)


def falling_rates(names: Sequence[str], share: float) -> dict[str, float]:
    """Blocks from the pixels up → their rate, as a share of the head's: each has `share` of the one above."""
    return {name: share ** (len(names) - place) for place, name in enumerate(names)}


def distilled(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: DistilMode) -> Head:
    """Head and the whole encoder, which has learnt the teacher's features before."""
    targets = None
    if transfer.soft:
        targets = torch.lerp(
            F.one_hot(torch.from_numpy(train.labels), len(train.classes)).float(),
            torch.from_numpy(Teacher(transfer, workshop.device).predictions(train)),
            transfer.soft,
        )
    return finetune(workshop, train, validation, transfer, name="labels", targets=targets)


def finetune(
    workshop: Workshop,
    train: ImageSet,
    validation: ImageSet,
    transfer: LabelMode,
    *,
    blocks: Sequence[str] | None = None,
    reconstruct: float = 0.0,
    rate_shares: Mapping[str, float] | None = None,
    frozen: Callable[[float], set[str]] = lambda _: set(),
    upper: Upper | None = None,
    head: Head | None = None,
    name: str | None = None,
    targets: Tensor | None = None,
) -> Head:
    """Head and encoder together: all its blocks, or those named.

    `reconstruct` weighs the decoder's loss; 0: none. `upper` reads what the blocks below gave once. `head` is a head
    to begin with, in the place of a new one. `name` is the stage's, if it is not the mode's. `targets` (N, classes)
    are learnt in the place of the training labels.
    """
    net = workshop.net
    if blocks is None:
        blocks = list(net.blocks())
    size = net.latent if transfer.reads == "embedding" else net.pool.size
    head = (heads.make(size, len(train.classes), transfer.hidden) if head is None else head).to(workshop.device)
    of_labels = LabelLoss.of(train, transfer.class_weights, workshop.device)
    labels, held_labels = truth_of(train), truth_of(validation)

    def loss_of_images(images: Tensor, truth: Tensor, augment: Augment, smoothing: float) -> Tensor:
        """`truth` are labels (N,) or shares of the classes (N, classes)."""
        with workshop.autocast():
            encoded = net.encode(erased(images, augment))
            taken = encoded.code if transfer.reads == "embedding" else net.pool(encoded.maps)
            total = of_labels(head(taken).float(), truth, smoothing)
            if reconstruct:
                total = total + reconstruct * reconstruction(workshop.objective, net.decoder(encoded.code), images)
            return total

    def loss(batch: Tensor) -> Tensor:
        truth = (labels if targets is None else targets)[batch].to(workshop.device)
        if upper is not None:
            given, truth = _mixed(transfer, upper.view(batch), truth, len(train.classes))
            with workshop.autocast():
                return of_labels(head(upper.read(given)).float(), truth, transfer.smoothing)
        images = augmented(workshop.unit(train.images[batch.numpy()]), transfer.augment)
        images, truth = _mixed(transfer, images, truth, len(train.classes))
        return loss_of_images(images, truth, transfer.augment, transfer.smoothing)

    def held_out(batch: Tensor) -> Tensor:
        truth = held_labels[batch].to(workshop.device)
        if upper is not None:
            with workshop.autocast():
                return of_labels(head(upper.read(upper.validation(batch))).float(), truth)
        return loss_of_images(workshop.unit(validation.images[batch.numpy()]), truth, Augment(), 0.0)

    learning: dict[str, nn.Module] = {name: net.blocks()[name] for name in blocks} | {"head": head}
    for block in net.blocks().values():
        block.requires_grad_(False)  # `fit` unfreezes those that learn
    if reconstruct:
        learning["decoder"] = net.decoder
    task = Task(
        name or transfer.mode,
        learning,
        loss=lambda batch, _: loss(batch),
        images=len(train),
        validate=lambda: mean_loss(held_out, len(validation)),
        rate_shares=rate_shares or {},
        frozen=frozen,
        freeze_norms=isinstance(transfer, ThawingMode) and transfer.freeze_norms,
    )
    fit(task, transfer, workshop.journal, workshop.checkpoints)
    for block in net.blocks().values():
        block.requires_grad_(True)
    return head


def _mixed(transfer: LabelMode, images: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mixed images, or what frozen blocks gave of them, and shares of the classes, if the mode mixes."""
    if not isinstance(transfer, MixingMode) or not (transfer.mixup or transfer.cutmix):
        return images, truth
    shares = F.one_hot(truth, classes).float() if truth.ndim == 1 else truth
    return mixed(images, shares, transfer.mixup, transfer.cutmix)
