"""Drawn defects: pieces of other images of a batch, turned, scaled and pasted (Schlüter et al. 2022, NSA).

A seamless piece takes the brightness and colour of the place it is pasted to, as the gradients of the piece are kept
and its rim is that of the image (Poisson editing, Pérez et al. 2003); here the difference at the rim is continued
inwards by averages, coarse to fine. Everything is drawn by torch's random numbers.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHANGED = 0.02  # of 0…1, on average over the channels: a smaller change of a pixel is none
# Shares of the shorter side: a piece's diameter, a stroke's length.
_PIECE, _STROKE = (0.03, 0.35), (0.08, 0.7)
_THICK = (1.0, 4.0)  # pixels, half of a stroke's width
_LONGEST = math.exp(1.2)  # the ratio of a piece's sides, at most
_STROKES, _BOXES, _TORN = 0.35, 0.3, 0.25  # shares of pieces; the others are round, and none is torn of a stroke
_RAGGED = 0.35  # of the radius, at most
_ZOOM = (0.5, 2.0)
_CONTRAST = (0.5, 2.5)  # of a piece, about the mean of the image that it comes from
_NEGATIVE = 0.2  # share of pieces whose contrast is reversed
_SHADE, _TINT = 0.15, 0.05  # deviation of the levels that a piece with a seam is off by: of all channels, of each
_FAINTEST = 0.4  # opacity
_SOFT = 0.5  # share of pieces with a soft edge


def pasted(images: Tensor, most: int, sound: float, seamless: float) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) in 0…1 → (the images with pieces pasted in, (N, H, W) bool: the pixels that they changed).

    Each has up to `most` pieces, a share `sound` none; a share of the pieces is `seamless`. The images are left as
    they are, and copies returned.
    """
    made = images.clone()
    pieces = torch.randint(1, most + 1, (len(images),))
    pieces[torch.rand(len(images)) < sound] = 0
    for number in range(most):
        rows = (pieces > number).nonzero()[:, 0].to(images.device)
        if len(rows):
            others = images[(rows + int(torch.randint(1, max(2, len(images)), ()))) % len(images)]
            made[rows] = _with_piece(made[rows], others, seamless)
    return made, (made - images).abs().mean(dim=1) > CHANGED


def _with_piece(images: Tensor, others: Tensor, seamless: float) -> Tensor:
    """Each image with one piece of the other beside it."""
    inside = _shapes(images)
    pieces = _recoloured(_placed_anew(others))
    offsets = _normal(images, (1, 1, 1)) * _SHADE + _normal(images, (images.shape[1], 1, 1)) * _TINT
    rim = continued(images - pieces, ~inside)
    pieces = pieces + torch.where(_chance(images, seamless), rim, offsets)
    hard = inside[:, None].float()
    soft = F.avg_pool2d(F.pad(hard, (1, 1, 1, 1), mode="replicate"), 3, 1)
    opacity = torch.where(_chance(images, _SOFT), soft, hard) * _uniform(images, _FAINTEST, 1)
    return torch.lerp(images, pieces, opacity).clamp(0, 1)


def continued(values: Tensor, known: Tensor) -> Tensor:
    """(N, C, H, W) values, (N, H, W) bool where they are known → smoothly continued to where they are not.

    Unknown values are averages of the known ones near, taken at half the size again and again; on the way back each
    size smooths what it had to enlarge. Without any known value, zeros.
    """
    sizes = [(values, known[:, None].float())]
    while max(sizes[-1][0].shape[2:]) > 1:
        finer, weight = sizes[-1]
        half = F.avg_pool2d(weight, 2, ceil_mode=True, count_include_pad=False)
        summed = F.avg_pool2d(finer * weight, 2, ceil_mode=True, count_include_pad=False)
        sizes.append((summed / half.clamp(min=1e-6), (half > 0).float()))
    found = sizes.pop()[0]
    for finer, weight in reversed(sizes):
        found = F.interpolate(found, size=finer.shape[2:], mode="bilinear", align_corners=False)
        found = torch.lerp(found, finer, weight)
        around = F.pad(found, (1, 1, 1, 1), mode="replicate")
        sides = around[:, :, :-2, 1:-1] + around[:, :, 2:, 1:-1] + around[:, :, 1:-1, :-2] + around[:, :, 1:-1, 2:]
        found = torch.lerp(sides / 4, finer, weight)
    return found


def _shapes(images: Tensor) -> Tensor:
    """(N, H, W) bool: ellipses and boxes, smooth or ragged, whole or torn, and bent strokes, anywhere."""
    (height, width), device, like = images.shape[2:], images.device, images[:, 0, :1, :1]
    side = min(height, width)

    def between(low: float, high: float) -> Tensor:
        return _uniform(like, low, high)

    def log_between(low: float, high: float) -> Tensor:
        return between(math.log(low), math.log(high)).exp()

    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    down, right, turn = y - between(0, height), x - between(0, width), between(0, math.pi)
    along, across = right * turn.cos() + down * turn.sin(), down * turn.cos() - right * turn.sin()
    stroke, box, torn = (_chance(like, share) for share in (_STROKES, _BOXES, _TORN))
    length = side * log_between(*_STROKE) / 2
    bend = between(-1, 1) * along.square() / (2 * length) + 0.15 * length * _clouds(like, height, width, side / 6)
    radius, ratio = side * log_between(*_PIECE) / 2, log_between(1 / _LONGEST, _LONGEST).sqrt()
    along = along / torch.where(stroke, length, radius * ratio)
    across = torch.where(stroke, (across + bend) / between(*_THICK), across * ratio / radius)
    apart = torch.where(box & ~stroke, torch.maximum(along.abs(), across.abs()), torch.hypot(along, across))
    clouds = _clouds(like, height, width, side / 16)
    apart = apart + torch.where(stroke, 0.0, between(0, _RAGGED)) * clouds
    return (apart < 1) & ~(torn & ~stroke & (clouds > 0.3))


def _clouds(like: Tensor, height: int, width: int, period: float) -> Tensor:
    """(N, H, W) smooth noise that changes over some `period` pixels."""
    cells = [max(2, math.ceil(side / period) + 1) for side in (height, width)]
    coarse = torch.randn(len(like), 1, *cells).to(like.device)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[:, 0]


def _placed_anew(images: Tensor) -> Tensor:
    """Turned, mirrored, larger or smaller, and moved; what comes in from outside is mirrored."""
    height, width = images.shape[2:]
    like = images[:, 0, 0, 0]
    turn = _uniform(like, 0, 2 * math.pi)
    zoom = _uniform(like, *map(math.log, _ZOOM)).exp()
    mirrored = torch.where(_chance(like, 0.5), -1.0, 1.0)
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    rows = [
        *(mirrored * cos, -mirrored * sin * (height / width), _uniform(like, -1, 1)),
        *(sin * (width / height), cos, _uniform(like, -1, 1)),
    ]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def _recoloured(images: Tensor) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    contrast = _uniform(images, *map(math.log, _CONTRAST)).exp()
    return mean + (images - mean) * torch.where(_chance(images, _NEGATIVE), -contrast, contrast)


def _drawn(draw: Callable[..., Tensor]) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
    """On the CPU, so that a seed gives the same pieces on every device."""

    def of(like: Tensor, sides: tuple[int, ...]) -> Tensor:
        return draw(len(like), *sides).to(like.device)

    return of


_normal, _any = _drawn(torch.randn), _drawn(torch.rand)


def _uniform(like: Tensor, low: float, high: float) -> Tensor:
    """One number an image, with as many axes as `like`."""
    return low + (high - low) * _any(like, (1,) * (like.ndim - 1))


def _chance(like: Tensor, share: float) -> Tensor:
    """One bool an image."""
    return _any(like, (1,) * (like.ndim - 1)) < share
