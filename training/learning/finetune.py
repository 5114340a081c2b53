"""Fine-tuning on the target's labels: a head alone, head and encoder, or both with the decoder."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.imageset import ImageSet
from training.data.storage import chunks
from training.learning.augment import augmented, erased
from training.learning.fit import Task, fit
from training.learning.inference import mean_loss, read
from training.learning.objectives import reconstruction
from training.learning.workshop import Workshop
from training.networks import head as heads
from training.networks.head import Head
from training.recipe import Augment, LabelMode, MultitaskMode


def train_head(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: LabelMode) -> Head:
    """A classifier on the frozen encoder's outputs. It learns on standardised input, whose scaling is folded in."""
    train_points, validation_points = read(workshop, train, transfer.reads), read(workshop, validation, transfer.reads)
    mean, std = _moments(train_points)
    labels, validation_labels = torch.from_numpy(train.labels), torch.from_numpy(validation.labels)
    weights = class_weights(train) if transfer.class_weights else None
    head = heads.make(train_points.shape[1], len(train.classes), transfer.hidden)

    def loss(points: np.ndarray, truth: Tensor, batch: Tensor, smoothing: float) -> Tensor:
        standardised = (torch.from_numpy(points[batch.numpy()]) - mean) / std
        return F.cross_entropy(head(standardised), truth[batch], weights, label_smoothing=smoothing)

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
) -> Head:
    """Head and encoder together: all its blocks, or those named. `reconstruct` weighs the decoder's loss; 0: none."""
    net = workshop.net
    if blocks is None:
        blocks = list(net.blocks())
    size = net.latent if transfer.reads == "embedding" else net.pool.size
    head = heads.make(size, len(train.classes), transfer.hidden).to(workshop.device)
    weights = class_weights(train).to(workshop.device) if transfer.class_weights else None

    def loss(data: ImageSet, batch: Tensor, augment: Augment, smoothing: float) -> Tensor:
        images = augmented(workshop.unit(data.images[batch.numpy()]), augment)
        labels = torch.from_numpy(data.labels[batch.numpy()]).to(workshop.device)
        with workshop.autocast():
            encoded = net.encode(erased(images, augment))
            taken = encoded.code if transfer.reads == "embedding" else net.pool(encoded.maps)
            total = F.cross_entropy(head(taken).float(), labels, weights, label_smoothing=smoothing)
            if reconstruct:
                total = total + reconstruct * reconstruction(workshop.objective, net.decoder(encoded.code), images)
            return total

    learning: dict[str, nn.Module] = {name: net.blocks()[name] for name in blocks} | {"head": head}
    for block in net.blocks().values():
        block.requires_grad_(False)  # `fit` unfreezes those that learn
    if reconstruct:
        learning["decoder"] = net.decoder
    task = Task(
        transfer.mode,
        learning,
        loss=lambda batch, _: loss(train, batch, transfer.augment, transfer.smoothing),
        images=len(train),
        validate=lambda: mean_loss(lambda batch: loss(validation, batch, Augment(), 0.0), len(validation)),
        rate_shares=rate_shares or {},
        frozen=frozen,
    )
    fit(task, transfer, workshop.journal, workshop.checkpoints)
    for block in net.blocks().values():
        block.requires_grad_(True)
    return head


def class_weights(data: ImageSet) -> Tensor:
    """Weights inverse to the images of a class, 1 on average over images: each class has the same share of the loss."""
    counts = np.bincount(data.labels, minlength=len(data.classes))
    return torch.from_numpy(len(data) / (np.maximum(counts, 1) * len(data.classes))).float()


def _moments(points: np.ndarray) -> tuple[Tensor, Tensor]:
    """(D,) mean and standard deviation, computed in chunks."""
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in chunks(points)) / len(points)
    variance = sum(np.square(part - mean).sum(axis=0, dtype=np.float64) for part in chunks(points)) / len(points)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float().clamp_min(1e-6)
