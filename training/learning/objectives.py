"""Pretraining objectives: reconstruction + contrast + penalty on corrupted images, weighted by the recipe."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.autoencoder import Autoencoder
from training.networks.encoded import Encoded
from training.recipe import Objective

PATCH = 4  # pixels; side of a masked patch
_BETWEEN, _PROJECTED = 128, 64  # numbers in a projection's middle and at its end


def reconstruction(objective: Objective, logits: Tensor, images: Tensor) -> Tensor:
    """Mean over pixels. Cross-entropy takes grey levels as probabilities; its gradients stay steady near 0 and 1."""
    if objective.loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, images)
    return F.mse_loss(logits.sigmoid(), images)


def corrupt(objective: Objective, images: Tensor) -> Tensor:
    """Add noise and black out patches; the loss is against the clean image."""
    if objective.noise:
        images = (images + objective.noise * torch.randn_like(images)).clamp(0, 1)
    if objective.mask:
        n, _, height, width = images.shape
        kept = torch.rand(n, 1, -(-height // PATCH), -(-width // PATCH), device=images.device) >= objective.mask
        kept = kept.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        images = images * kept[:, :, :height, :width]
    return images


def penalty(objective: Objective, encoded: Encoded, progress: float, pixels: int) -> Tensor:
    """Sparsity of the code, and of a variational code its divergence from the prior, in the reconstruction's units.

    The code is what decoder and head take, its activation included: units are as sparse as the penalty says.
    `progress` is the share of the stage's steps that are done. The reconstruction is a mean over `pixels`, so the
    divergence, which belongs to the whole image, is divided by them: beta 1 is then the evidence lower bound.
    """
    code = encoded.code
    total = code.new_zeros(())
    if objective.l1:
        total = total + objective.l1 * code.abs().mean()
    if objective.kl:
        active, goal = code.float().mean(0).clamp(1e-6, 1 - 1e-6), objective.activity
        divergence = goal * (goal / active).log() + (1 - goal) * ((1 - goal) / (1 - active)).log()
        total = total + objective.kl * divergence.mean()
    if encoded.log_variance is not None:
        log_variance = encoded.log_variance
        divergence = 0.5 * (code.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        beta = objective.beta * min(1.0, progress / objective.warm_up if objective.warm_up else 1.0)
        total = total + beta * divergence / pixels
    return total


def sample(encoded: Encoded) -> Tensor:
    """The code; of a variational encoder, a sample around it (reparameterised)."""
    if encoded.log_variance is None:
        return encoded.code
    return encoded.code + (0.5 * encoded.log_variance).exp() * torch.randn_like(encoded.code)


def projection(latent: int) -> nn.Module:
    """Contrast is measured through this layer, which is dropped afterwards, so that the code need not be invariant."""
    return nn.Sequential(
        nn.Linear(latent, _BETWEEN), nn.BatchNorm1d(_BETWEEN), nn.ReLU(), nn.Linear(_BETWEEN, _PROJECTED)
    )


def contrast(projected: Tensor, temperature: float) -> Tensor:
    """(2N, D): one view of each image, then, in the same order, another → the mean cross-entropy of finding each
    view's other one among all 2N - 1 by their cosines (NT-Xent, Chen et al. 2020)."""
    directions = F.normalize(projected.float(), dim=1)
    alike = directions @ directions.T / temperature
    itself = torch.eye(len(alike), dtype=torch.bool, device=alike.device)
    others = torch.arange(len(alike), device=alike.device).roll(len(alike) // 2)
    return F.cross_entropy(alike.masked_fill(itself, -torch.inf), others)


def pretraining_loss(
    net: Autoencoder,
    objective: Objective,
    images: Tensor,
    shown: Tensor,
    progress: float,
    projector: nn.Module | None = None,
) -> Tensor:
    """(N, C, H, W) in 0…1 → the pretraining loss: `images` are reconstructed from `shown`, which is corrupted first.

    With a `projector`, `images` holds two views of each image in the order of `contrast`, whose loss is added.
    """
    encoded = net.encode(corrupt(objective, shown))
    loss = penalty(objective, encoded, progress, images[0].numel())
    if objective.reconstruction:
        drawn = reconstruction(objective, net.decoder(sample(encoded)), images)
        loss = loss + objective.reconstruction * drawn
    if projector is not None:
        loss = loss + objective.contrast * contrast(projector(encoded.code), objective.temperature)
    return loss
