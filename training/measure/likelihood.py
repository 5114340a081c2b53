"""Likelihood of images under a variational autoencoder: a bound, tighter with more draws (Burda et al. 2016)."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.bundle.manifest import Metric
from training.data.imageset import ImageSet
from training.networks.autoencoder import Autoencoder
from training.progress import track
from training.recipe import Objective

DRAWS = 32  # codes per image
_AT_A_TIME = 1024  # codes decoded in one batch
_LIKELIHOODS = {  # by loss, which is the negative logarithm, as a mean over pixels
    "bce": "grey levels as probabilities of Bernoulli pixels",
    "mse": "Gaussian pixels of variance 1/2 in 0…1",
}


class Bound(NamedTuple):
    """(N,) nats each: upper bounds of -ln p(x), up to the chance of the draws."""

    elbo: Tensor  # -E ln w, which training minimises
    weighted: Tensor  # -E ln of the mean of `DRAWS` w


def log_likelihood(objective: Objective, logits: Tensor, images: Tensor) -> Tensor:
    """(N, C, H, W) each → (N,) ln p(x | z)."""
    if objective.loss == "bce":
        return -F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)
    return -(logits.sigmoid() - images).square().flatten(1).sum(1) - images[0].numel() / 2 * math.log(math.pi)


def bound(net: Autoencoder, objective: Objective, images: Tensor, draws: int = DRAWS) -> Bound:
    """(N, C, H, W) in 0…1. w = p(x | z) p(z) / q(z | x) with z = mean + spread · ε drawn from q: ln E w = ln p(x)."""
    encoded = net.encode(images)
    mean, log_variance = encoded.code, encoded.log_variance
    assert log_variance is not None  # the network is variational
    noise = torch.randn(len(images), draws, net.latent)
    codes = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise  # (N, draws, latent)
    # ln p(z) - ln q(z | x): both normal, with equal constants.
    prior_over_posterior = 0.5 * (noise.square() + log_variance[:, None] - codes.square()).sum(2)
    shown = images.repeat_interleave(draws, dim=0)
    log_w = log_likelihood(objective, net.decoder(codes.flatten(0, 1)), shown).view(-1, draws) + prior_over_posterior
    return Bound(-log_w.mean(1), math.log(draws) - log_w.logsumexp(1))


def bounds(net: Autoencoder, objective: Objective, data: ImageSet, draws: int = DRAWS) -> np.ndarray:
    """(N, 2): elbo and weighted per image, each image with its own draws."""
    found, step = np.empty((len(data), 2)), max(1, _AT_A_TIME // draws)
    for module in (net.encoder, net.decoder):
        module.cpu().eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)  # the same draws at every call
        starts = range(0, len(data), step)
        for start in track(starts, "bound", len(starts)):
            images = torch.from_numpy(data.images[start : start + step]).permute(0, 3, 1, 2).float() / 255
            found[start : start + step] = torch.stack(bound(net, objective, images, draws), dim=1).numpy()
    return found


def metrics(net: Autoencoder, objective: Objective, data: ImageSet) -> list[Metric]:
    """Means over all images."""
    elbo, weighted = bounds(net, objective, data).mean(axis=0).tolist()
    how = f"the torch modules, nats an image, test images, {_LIKELIHOODS[objective.loss]}"
    found = {"negative_elbo": (elbo, how), "nll_bound": (weighted, f"{how}, importance-weighted, {DRAWS} draws")}
    return [Metric(name=name, value=value, images=len(data), how=how) for name, (value, how) in found.items()]
