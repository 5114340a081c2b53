"""The target's labels: a head, and as much of the encoder as the mode says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.imageset import ImageSet
from training.learning.augment import augmented, erased
from training.learning.episodes import learn_to_learn
from training.learning.fit import Task, fit
from training.learning.inference import LEAST_SPREAD, mean_loss, moments, read
from training.learning.mixing import mixed
from training.learning.objectives import reconstruction
from training.learning.teacher import Teacher
from training.learning.upper import Upper
from training.learning.workshop import Workshop
from training.networks import head as heads
from training.networks.encoded import Backbone
from training.networks.head import Head
from training.recipe import (
    Augment,
    DistilMode,
    EpisodicMode,
    FullMode,
    GradualMode,
    LabelMode,
    MixingMode,
    MultitaskMode,
    ThawingMode,
)


def train_head(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: LabelMode) -> Head:
    """A classifier on the frozen encoder's outputs; it learns on standardised input, which is folded in at the end."""
    seen, held = read(shop, train, transfer.reads), read(shop, validation, transfer.reads)
    mean, std = moments(seen, LEAST_SPREAD if shop.net.published else 0)
    labels, held_labels = torch.from_numpy(train.labels), torch.from_numpy(validation.labels)
    weights = class_weights(train) if transfer.class_weights else None
    head = heads.make(seen.shape[1], len(train.classes), transfer.hidden)

    def loss(points: np.ndarray, truth: Tensor, batch: Tensor, smoothing: float) -> Tensor:
        standardised = (torch.from_numpy(points[batch.numpy()]) - mean) / std
        return F.cross_entropy(head(standardised), truth[batch], weights, label_smoothing=smoothing)

    task = Task(
        "head",
        {"head": head},
        loss=lambda batch, _: loss(seen, labels, batch, transfer.smoothing),
        images=len(seen),
        validate=lambda: mean_loss(lambda batch: loss(held, held_labels, batch, 0.0), len(held)),
    )
    fit(task, transfer, shop.journal, shop.checkpoints)
    with torch.no_grad():
        first = heads.reading(head)
        first.bias.sub_(first.weight @ (mean / std))
        first.weight.div_(std)
    return head


def multitask(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: MultitaskMode) -> Head:
    """Head, encoder and decoder together."""
    return finetune(shop, train, validation, transfer, reconstruct=transfer.reconstruction)


def gradual(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: GradualMode) -> Head:
    """The head first; each equal share of the epochs then frees the next block down, slower than the last."""
    names = shop.net.blocks_read(transfer.reads)[-transfer.thaw :]

    def still_frozen(progress: float) -> set[str]:
        return set(names[: len(names) - int(progress * (len(names) + 1))])

    return finetune(
        shop,
        train,
        validation,
        transfer,
        blocks=names,
        rate_shares=_falling(names, transfer.slower_below),
        frozen=still_frozen,
        upper=_upper(shop, train, validation, transfer, names),
    )


def _upper(
    shop: Workshop, train: ImageSet, validation: ImageSet, transfer: GradualMode, names: Sequence[str]
) -> Upper | None:
    """The blocks that thaw, where those below need to run only once for each image."""
    start = list(shop.net.blocks()).index(names[0])
    new_images = transfer.augment != Augment() and not transfer.views
    if start == 0 or new_images or transfer.mixup or transfer.cutmix or not isinstance(shop.net.encoder, Backbone):
        return None
    return Upper(shop, start, transfer, train, validation)


def full(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: FullMode) -> Head:
    """Head and encoder; rates may fall towards the input."""
    shares = _falling(list(shop.net.blocks()), transfer.slower_below)
    return finetune(shop, train, validation, transfer, rate_shares=shares)


def _falling(names: Sequence[str], share: float) -> dict[str, float]:
    """Blocks from the pixels up → their rate, as a share of the head's: each has `share` of the one above."""
    return {name: share ** (len(names) - place) for place, name in enumerate(names)}


def distilled(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: DistilMode) -> Head:
    """Head and the whole encoder, which has learnt the teacher's features before."""
    targets = None
    if transfer.soft:
        targets = torch.lerp(
            F.one_hot(torch.from_numpy(train.labels), len(train.classes)).float(),
            torch.from_numpy(Teacher(transfer, shop.device).predictions(train)),
            transfer.soft,
        )
    return finetune(shop, train, validation, transfer, name="labels", targets=targets)


def episodic(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: EpisodicMode) -> Head:
    """The encoder by episodes, then a head on it as it is."""
    learn_to_learn(shop, train, validation, transfer)
    return train_head(shop, train, validation, transfer)


def finetune(
    shop: Workshop,
    train: ImageSet,
    validation: ImageSet,
    transfer: LabelMode,
    *,
    blocks: Sequence[str] | None = None,
    reconstruct: float = 0.0,
    rate_shares: Mapping[str, float] | None = None,
    frozen: Callable[[float], set[str]] = lambda _: set(),
    upper: Upper | None = None,
    name: str | None = None,
    targets: Tensor | None = None,
) -> Head:
    """Head and encoder together: all its blocks, or those named.

    `reconstruct` weighs the decoder's loss; 0: none. `upper` reads what the blocks below gave once. `name` is the
    stage's, if it is not the mode's. `targets` (N, classes) are learnt in the place of the training labels.
    """
    net = shop.net
    if blocks is None:
        blocks = list(net.blocks())
    size = net.latent if transfer.reads == "embedding" else net.pool.size
    head = heads.make(size, len(train.classes), transfer.hidden).to(shop.device)
    weights = class_weights(train).to(shop.device) if transfer.class_weights else None
    labels, held_labels = torch.from_numpy(train.labels), torch.from_numpy(validation.labels)

    def loss_of_images(images: Tensor, truth: Tensor, augment: Augment, smoothing: float) -> Tensor:
        """`truth` are labels (N,) or shares of the classes (N, classes)."""
        with shop.autocast():
            encoded = net.encode(erased(images, augment))
            taken = encoded.code if transfer.reads == "embedding" else net.pool(encoded.maps)
            total = F.cross_entropy(head(taken).float(), truth, weights, label_smoothing=smoothing)
            if reconstruct:
                total = total + reconstruct * reconstruction(shop.objective, net.decoder(encoded.code), images)
            return total

    def loss(batch: Tensor) -> Tensor:
        truth = (labels if targets is None else targets)[batch].to(shop.device)
        if upper is not None:
            with shop.autocast():
                logits = head(upper.read_view(batch)).float()
                return F.cross_entropy(logits, truth, weights, label_smoothing=transfer.smoothing)
        images = augmented(shop.unit(train.images[batch.numpy()]), transfer.augment)
        images, truth = _mixed(transfer, images, truth, len(train.classes))
        return loss_of_images(images, truth, transfer.augment, transfer.smoothing)

    def held_out(batch: Tensor) -> Tensor:
        truth = held_labels[batch].to(shop.device)
        if upper is not None:
            with shop.autocast():
                return F.cross_entropy(head(upper.read_held(batch)).float(), truth, weights)
        return loss_of_images(shop.unit(validation.images[batch.numpy()]), truth, Augment(), 0.0)

    learning: dict[str, nn.Module] = {name: net.blocks()[name] for name in blocks} | {"head": head}
    for block in net.blocks().values():
        block.requires_grad_(False)  # `fit` frees those that learn
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
    fit(task, transfer, shop.journal, shop.checkpoints)
    for block in net.blocks().values():
        block.requires_grad_(True)
    return head


def _mixed(transfer: LabelMode, images: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mixed images and shares of the classes, if the mode mixes."""
    if not isinstance(transfer, MixingMode) or not (transfer.mixup or transfer.cutmix):
        return images, truth
    shares = F.one_hot(truth, classes).float() if truth.ndim == 1 else truth
    return mixed(images, shares, transfer.mixup, transfer.cutmix)


def class_weights(data: ImageSet) -> Tensor:
    """Weights inverse to the images of a class, 1 on average over images: each class has the same share of the loss."""
    counts = np.bincount(data.labels, minlength=len(data.classes))
    return torch.from_numpy(len(data) / (np.maximum(counts, 1) * len(data.classes))).float()


# Mode → what learns the target's labels, and takes that mode's settings.
METHODS: dict[str, Callable[[Workshop, ImageSet, ImageSet, Any], Head]] = {
    "head": train_head,
    "random-frozen": train_head,
    "full": full,
    "distil": distilled,
    "scratch": finetune,
    "multitask": multitask,
    "gradual": gradual,
    "episodic": episodic,
}
