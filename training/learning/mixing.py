"""Batches mixed in pairs, images and labels alike: mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019)."""

import torch
from torch import Tensor


def mixed(images: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """(N, C, H, W), or (N, D) where cutmix is 0, and (N, classes) shares of the classes → mixed, and their targets.

    Each image gets a partner of the batch and keeps a share λ of itself, λ ~ Beta(α, α). `mixup` and `cutmix` are the
    α of the two; 0 is off. With both, one of them is drawn for the whole batch.
    """
    cut = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cut else mixup
    share = torch.distributions.Beta(alpha, alpha).sample((len(images),)).to(images.device)
    partner = torch.randperm(len(images)).to(images.device)
    if cut:
        inside = _rectangles(1 - share, images.shape[2], images.shape[3])
        images = torch.where(inside[:, None], images[partner], images)
        share = 1 - inside.float().mean(dim=(1, 2))
    else:
        images = torch.lerp(images[partner], images, share.view(-1, *[1] * (images.ndim - 1)))
    return images, torch.lerp(targets[partner], targets, share[:, None])


def _rectangles(area: Tensor, height: int, width: int) -> Tensor:
    """(N,) shares of the area → (N, H, W): True in a rectangle of the image's aspect and a random centre, cut off at
    the borders."""
    rows, columns = (_span(area.sqrt(), side) for side in (height, width))
    return rows[:, :, None] & columns[:, None, :]


def _span(share: Tensor, side: int) -> Tensor:
    centre = torch.rand(len(share)).to(share.device) * side
    start, end = ((centre + sign * share * side / 2).round()[:, None] for sign in (-1, 1))
    pixel = torch.arange(side, device=share.device)[None]
    return (pixel >= start) & (pixel < end)
