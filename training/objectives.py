"""reconstruction + corruption + penalty: what an autoencoder is trained to do, composed from a recipe's numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks import Autoencoder, Encoded
from training.recipe import Objective

PATCH = 4  # pixels; the side of what masking blacks out


def reconstruction(objective: Objective, logits: Tensor, images: Tensor) -> Tensor:
    """The mean over pixels. Cross-entropy takes grey levels for probabilities, and is steadier near black and white."""
    if objective.loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, images)
    return F.mse_loss(logits.sigmoid(), images)


def corrupt(objective: Objective, images: Tensor) -> Tensor:
    """Noise is added and patches are blacked out; the loss still asks for the clean image."""
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

    `progress` is the share of the stage's steps that are done. The reconstruction is a mean over `pixels`, so the
    divergence, which belongs to the whole image, is divided by them: beta 1 is then the evidence lower bound.
    """
    code = encoded.code
    total = code.new_zeros(())
    if objective.l1:
        total = total + objective.l1 * code.abs().mean()
    if objective.kl:
        active, goal = code.sigmoid().mean(0).clamp(1e-6, 1 - 1e-6), objective.activity
        divergence = goal * (goal / active).log() + (1 - goal) * ((1 - goal) / (1 - active)).log()
        total = total + objective.kl * divergence.mean()
    if encoded.log_variance is not None:
        log_variance = encoded.log_variance
        divergence = 0.5 * (code.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        beta = objective.beta * min(1.0, progress / objective.warm_up if objective.warm_up else 1.0)
        total = total + beta * divergence / pixels
    return total


def sample(encoded: Encoded) -> Tensor:
    """The code itself; of a variational encoder while it learns, a draw around it (reparameterised)."""
    if encoded.log_variance is None:
        return encoded.code
    return encoded.code + (0.5 * encoded.log_variance).exp() * torch.randn_like(encoded.code)


def autoencoding_loss(net: Autoencoder, objective: Objective, images: Tensor, shown: Tensor, progress: float) -> Tensor:
    """(N, C, H, W) in 0…1 → what pretraining minimises: from what is `shown`, corrupted, the images are drawn."""
    encoded = net.encode(corrupt(objective, shown))
    loss = reconstruction(objective, net.decoder(sample(encoded)), images)
    return loss + penalty(objective, encoded, progress, images[0].numel())
