"""Augmentation: random changes of training images, drawn for each image, by a recipe's `augment`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipe import Augment

_ERASED = (0.02, 0.3)  # share of the image that a rectangle takes
_LONGEST = 3.0  # its sides' ratio, at most
_LONGEST_CROP = 1.35  # of the part that a crop enlarges, against the image's own

_CHANGES = 2  # of those below, for each image
# At strength 1, each way.
_STRONGEST = {
    "turn": math.radians(30),
    "shear_x": 0.3,  # pixels sideways for each pixel down
    "shear_y": 0.3,
    "shift_x": 0.6,  # shares of half the side
    "shift_y": 0.6,
    "brightness": 0.4,
    "contrast": 0.8,
    "saturation": 0.8,
    "tint": 0.4,  # each channel by a factor of its own
    "posterise": 5.0,  # bits that are lost
}


def augmented(images: Tensor, augment: Augment) -> Tensor:
    """(N, C, H, W) in 0…1 → changed copies. Erasing is separate, in `erased`."""
    if augment.flip != "none":
        images = _flipped(images, 3)
    if augment.flip in ("both", "any"):
        images = _flipped(images, 2)
    if augment.flip == "any":
        images = torch.where(_half(images), images.transpose(2, 3), images)
    if augment.crop < 1:
        images = _cropped(images, augment.crop)
    if augment.turn or augment.scale:
        images = _turned(images, augment.turn, augment.scale)
    if augment.shift:
        images = _shifted(images, augment.shift)
    if augment.light:
        images = _lit(images, augment.light)
    if augment.rand_augment:
        images = _rand_augmented(images, augment.rand_augment)
    return images


def _rand_augmented(images: Tensor, strength: float) -> Tensor:
    """Two of ten changes for each image, of random size up to `strength` of _STRONGEST (Cubuk et al. 2019).

    All images go through the same few operations; where a change was not drawn, its size is 0.
    """
    count = len(images)
    drawn = torch.rand(count, len(_STRONGEST), device=images.device).argsort(dim=1).argsort(dim=1) < _CHANGES
    most = torch.tensor(list(_STRONGEST.values()), device=images.device)
    sizes = strength * most * (torch.rand(count, len(_STRONGEST), device=images.device) * 2 - 1) * drawn
    size = dict(zip(_STRONGEST, sizes.unbind(1), strict=True))
    tints = torch.rand(count, images.shape[1], 1, 1, device=images.device) * 2 - 1
    return _coloured(_moved(images, size), size, tints)


def _moved(images: Tensor, size: dict[str, Tensor]) -> Tensor:
    """Turned, sheared and shifted; what comes in from outside is mirrored."""
    height, width = images.shape[2:]
    cos, sin = size["turn"].cos(), size["turn"].sin()
    right, down = size["shear_x"], size["shear_y"]
    # (turn) · (shear), in pixels, then in grid_sample's coordinates, which run from -1 to 1 on both axes.
    rows = [
        *(cos - sin * down, (cos * right - sin) * (height / width), size["shift_x"]),
        *((sin + cos * down) * (width / height), sin * right + cos, size["shift_y"]),
    ]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def _coloured(images: Tensor, size: dict[str, Tensor], tints: Tensor) -> Tensor:
    """`tints` (N, C, 1, 1) in -1…1: which way each channel changes under `tint`."""
    change = {name: each.view(-1, 1, 1, 1) for name, each in size.items()}
    grey, mean = images.mean(1, keepdim=True), images.mean((1, 2, 3), keepdim=True)
    images = grey + (images - grey) * (1 + change["saturation"])
    images = images * (1 + change["tint"] * tints)
    images = mean + (images - mean) * (1 + change["contrast"]) + change["brightness"]
    images = images.clamp(0, 1)
    levels = (2 ** (8 - change["posterise"].abs())).round() - 1
    return torch.where(change["posterise"] == 0, images, (images * levels).round() / levels)


def erased(images: Tensor, augment: Augment) -> Tensor:
    """The encoder's input; the reconstruction target stays whole."""
    return _erased(images, augment.erase) if augment.erase else images


def _flipped(images: Tensor, axis: int) -> Tensor:
    return torch.where(_half(images), images.flip(axis), images)


def _half(images: Tensor) -> Tensor:
    """(N, 1, 1, 1): True for a random half of the images."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5


def _cropped(images: Tensor, least: float) -> Tensor:
    """A part of `least` of the area or more, of random place and sides, enlarged to the whole."""
    count = len(images)
    area = torch.empty(count, device=images.device).uniform_(least, 1)
    ratio = (math.log(_LONGEST_CROP) * _symmetric(count, images.device)).exp()
    across, down = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    right, below = (_symmetric(count, images.device) * (1 - side) for side in (across, down))
    nil = torch.zeros_like(area)
    rows = [across, nil, right, nil, down, below]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def _lit(images: Tensor, share: float) -> Tensor:
    """Contrast about the image's own mean, and brightness; what leaves 0…1 is cut off."""
    contrast, brightness = (share * _symmetric(len(images), images.device).view(-1, 1, 1, 1) for _ in range(2))
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * (1 + contrast) + mean + brightness / 2).clamp(0, 1)


def _turned(images: Tensor, turn: float, scale: float) -> Tensor:
    """About the centre; what comes in from outside is black."""
    count, (height, width) = len(images), images.shape[2:]
    angle = math.radians(turn) * _symmetric(count, images.device)
    size = 1 + scale * _symmetric(count, images.device)
    cos, sin, nil = angle.cos() / size, angle.sin() / size, torch.zeros_like(angle)
    # grid_sample's coordinates run from -1 to 1 on both axes, whatever the sides.
    rows = [cos, -sin * (height / width), nil, sin * (width / height), cos, nil]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _shifted(images: Tensor, most: int) -> Tensor:
    count, (height, width) = len(images), images.shape[2:]
    padded = F.pad(images, (most, most, most, most)).permute(0, 2, 3, 1)  # (N, H + 2m, W + 2m, C)
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1), device=images.device)
    rows = (down + torch.arange(height, device=images.device))[:, :, None]
    columns = (right + torch.arange(width, device=images.device))[:, None, :]
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, rows, columns].permute(0, 3, 1, 2)


def _erased(images: Tensor, often: float) -> Tensor:
    """Random erasing (Zhong et al. 2017): a rectangle of random size, shape and place is filled with noise."""
    count, (height, width) = len(images), images.shape[2:]
    share = torch.empty(count, device=images.device).uniform_(*_ERASED)
    ratio = (math.log(_LONGEST) * _symmetric(count, images.device)).exp()
    chosen = torch.rand(count, device=images.device) < often

    def inside(side: int, part: Tensor) -> Tensor:
        """(N, side): whether a pixel lies in the span of each image."""
        length = (side * part).clamp(1, side)
        start = torch.rand(count, device=images.device) * (side - length)
        pixel = torch.arange(side, device=images.device)[None]
        return (pixel >= start.floor()[:, None]) & (pixel < (start.floor() + length.round())[:, None])

    rows, columns = inside(height, (share * ratio).sqrt()), inside(width, (share / ratio).sqrt())
    hole = (rows[:, None, :, None] & columns[:, None, None, :]) & chosen[:, None, None, None]
    return torch.where(hole, torch.rand_like(images), images)


def _symmetric(count: int, device: torch.device) -> Tensor:
    """(N,) uniform in -1…1."""
    return torch.rand(count, device=device) * 2 - 1
