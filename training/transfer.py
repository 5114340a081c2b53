"""Pretraining on a source, and the ways to bring what was learnt to a target."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data import ImageSet
from training.fit import Journal, fit
from training.networks import Autoencoder
from training.recipe import Stage

_BATCH = 1024  # where nothing is learnt, so that its size is only a matter of memory


def unit(images: np.ndarray | Tensor) -> Tensor:
    """(N, H, W, C) uint8 → (N, C, H, W) float in 0…1: the scaling that the exported encoder has inside."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255


def in_batches(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([function(part) for part in torch.split(rows, _BATCH)])


def reconstruction_loss(net: Autoencoder, images: Tensor) -> Tensor:
    """Binary cross-entropy against grey levels as probabilities: steadier than MSE where pixels are black or white."""
    return F.binary_cross_entropy_with_logits(net.decoder(net.encoder(images)), images)


def _mean_loss(loss: Callable[[Tensor], Tensor], rows: int) -> float:
    parts = torch.split(torch.arange(rows), _BATCH)
    return sum(loss(part).item() * len(part) for part in parts) / rows


def pretrain(net: Autoencoder, train: ImageSet, validation: ImageSet, stage: Stage, journal: Journal) -> None:
    """Encoder and decoder, to reconstruct the source; its labels are not looked at."""
    seen, held = torch.from_numpy(train.images), torch.from_numpy(validation.images)
    fit(
        "pretrain",
        [net.encoder, net.decoder],
        lambda batch: reconstruction_loss(net, unit(seen[batch])),
        len(seen),
        stage,
        journal,
        lambda: _mean_loss(lambda batch: reconstruction_loss(net, unit(held[batch])), len(held)),
    )


def codes(net: Autoencoder, data: ImageSet) -> Tensor:
    """(N, latent_size), of the frozen encoder."""
    return in_batches(lambda images: net.encoder(unit(images)), torch.from_numpy(data.images))


def train_head(net: Autoencoder, train: ImageSet, validation: ImageSet, stage: Stage, journal: Journal) -> nn.Linear:
    """A linear classifier on the frozen encoder's code. It learns on standardised codes, and is then folded back."""
    seen, held = codes(net, train), codes(net, validation)
    mean, std = seen.mean(0), seen.std(0).clamp_min(1e-6)
    seen, held = ((part - mean) / std for part in (seen, held))
    labels, held_labels = torch.from_numpy(train.labels), torch.from_numpy(validation.labels)
    head = nn.Linear(net.latent_size, len(train.classes))
    fit(
        "head",
        [head],
        lambda batch: F.cross_entropy(head(seen[batch]), labels[batch]),
        len(seen),
        stage,
        journal,
        lambda: F.cross_entropy(head(held), held_labels).item(),
    )
    with torch.no_grad():
        head.bias.sub_(head.weight @ (mean / std))
        head.weight.div_(std)
    return head


def finetune_decoder(net: Autoencoder, train: ImageSet, validation: ImageSet, stage: Stage, journal: Journal) -> None:
    """The decoder learns to draw the target from the frozen encoder's code."""
    seen, held = codes(net, train), codes(net, validation)
    images, held_images = torch.from_numpy(train.images), torch.from_numpy(validation.images)

    def loss(code: Tensor, image: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net.decoder(code), unit(image))

    fit(
        "decoder",
        [net.decoder],
        lambda batch: loss(seen[batch], images[batch]),
        len(seen),
        stage,
        journal,
        lambda: _mean_loss(lambda batch: loss(held[batch], held_images[batch]), len(held)),
    )
