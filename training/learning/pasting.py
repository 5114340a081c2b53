"""Drawn defects: pieces of other images of a batch, turned, scaled and pasted (Schlüter et al. 2022, NSA), and lines.

A seamless piece takes the brightness and colour of the place it is pasted to, as the gradients of the piece are kept
and its rim is that of the image (Poisson editing, Pérez et al. 2003); here the difference at the rim is continued
inwards by averages, coarse to fine. A line is thin, bent, and as faint as the image's grain: pieces cut by a mask have
nothing like a hairline crack. Everything is drawn by torch's random numbers.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_CHANGED = 0.3  # of the grain's deviation, on average over the channels: a smaller change of a pixel is none
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
# Lines. Shares of the shorter side: length; pixels: deviation of the profile.
_LINE, _SPREAD = (0.08, 1.2), (0.4, 1.6)
_POINTS = 256  # along a line: no more than a pixel apart, in squares of 128 pixels
_TURNS = 24  # straight parts of a line
_JAGGED, _BENT = 0.6, 0.06  # radians from part to part: largest deviation, deviation of their mean
_GRAIN = 9  # pixels: what differs from the mean over such squares is grain
_STRONG = (0.6, 3.5)  # a line's difference from its surroundings, in deviations of the grain
_LEAST_GRAIN = 0.01  # of 0…1: of images that have hardly any
_DARK = 0.6  # share of lines darker than their surroundings
_LINE_TINT = 0.25  # deviation of the channels' differences, as a share
_FLAT = 0.8  # of the profile's peak, above which it is cut off
_BROKEN, _GAPS, _GAP = 0.4, 0.7, 8  # share of lines that vary in opacity, by how much, within how many pixels


def pasted(images: Tensor, most: int, sound: float, seamless: float, lines: float) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) in 0…1 → (the images with defects, (N, H, W) bool: the pixels that these changed).

    Each has up to `most` defects, a share `sound` none. A share `lines` of the images has lines, the others have
    pieces, a share of which is `seamless`. The images are left as they are, and copies returned.
    """
    made = images.clone()
    count = torch.randint(1, most + 1, (len(images),))
    count[torch.rand(len(images)) < sound] = 0
    lined = torch.rand(len(images)) < lines
    for number in range(most):
        rows, line_rows = (((count > number) & chosen).nonzero()[:, 0].to(images.device) for chosen in (~lined, lined))
        if len(rows):
            others = images[(rows + int(torch.randint(1, max(2, len(images)), ()))) % len(images)]
            made[rows] = _with_piece(made[rows], others, seamless)
        if len(line_rows):
            made[line_rows] = _with_line(made[line_rows])
    return made, (made - images).abs().mean(dim=1) > _CHANGED * grain(images)[:, 0]


def grain(images: Tensor) -> Tensor:
    """(N, C, H, W) → (N, 1, 1, 1): how much pixels differ from the mean around them."""
    fine = images - _around(images)
    return fine.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=_LEAST_GRAIN)


def _around(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, _GRAIN, 1, _GRAIN // 2, count_include_pad=False)


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


def _with_line(images: Tensor) -> Tensor:
    """Each image with one line, which hides the grain below it, or shades it."""
    strength = _uniform(images, *map(math.log, _STRONG)).exp() * torch.where(_chance(images, _DARK), -1.0, 1.0)
    tint = 1 + _LINE_TINT * _normal(images, (images.shape[1], 1, 1)) if images.shape[1] > 1 else 1
    below = torch.lerp(images, _around(images), _uniform(images, 0, 1))
    return torch.lerp(images, below + grain(images) * strength * tint, _lines(images)).clamp(0, 1)


def _lines(images: Tensor) -> Tensor:
    """(N, 1, H, W) in 0…1: the opacity of a line of each image."""
    height, width = images.shape[2:]
    like = images[:, 0, :1, 0]  # (N, 1)
    y, x, step = _path(like, height, width)
    spread = _uniform(like, *map(math.log, _SPREAD)).exp()
    smooth = _blurred(_marked(y, x, step, height=height, width=width), spread)
    peak = math.sqrt(2 * math.pi) * spread.view(-1, 1, 1, 1)  # of a straight line
    opacity = (smooth / (_FLAT * peak)).clamp(max=1)
    varied = (1 + _GAPS * _clouds(like[:, 0], height, width, _GAP)[:, None]).clamp(0, 1)
    return torch.where(_chance(images, _BROKEN), opacity * varied, opacity)


def _path(like: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(y, x of a line's points (N, points), pixels from point to point (N, 1)); they may lie outside."""
    step = min(height, width) * _uniform(like, *map(math.log, _LINE)).exp() / _POINTS
    turns = _normal(like, (_TURNS,)) * _uniform(like, 0, _JAGGED) + _BENT * _normal(like, (1,))
    angle = _uniform(like, 0, 2 * math.pi) + turns.cumsum(dim=1).repeat_interleave(-(-_POINTS // _TURNS), dim=1)
    angle = angle[:, :_POINTS]
    y = (angle.sin() * step).cumsum(dim=1) + _uniform(like, 0, height)
    x = (angle.cos() * step).cumsum(dim=1) + _uniform(like, 0, width)
    return y, x, step


def _marked(y: Tensor, x: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """(N, 1, H, W): the weights of the points (N, points), each shared among the four pixels around it."""
    marked = torch.zeros(len(y), height * width, device=y.device)
    for down in (0, 1):
        for right in (0, 1):
            row, column = y.floor() + down, x.floor() + right
            share = (1 - (y - row).abs()) * (1 - (x - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            marked.scatter_add_(1, (row * width + column).long().where(inside, 0), share * inside * weight)
    return marked.view(-1, 1, height, width)


def _blurred(marked: Tensor, spread: Tensor) -> Tensor:
    """Each of (N, 1, H, W) by a Gaussian of height 1 and its own deviation, (N, 1)."""
    count, radius = len(marked), math.ceil(3 * _SPREAD[1])
    profile = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=marked.device) / spread).square())
    smooth = marked.transpose(0, 1)  # images as channels
    for sides in ((-1, 1), (1, -1)):
        smooth = F.conv2d(smooth, profile.view(count, 1, *sides), padding="same", groups=count)
    return smooth.transpose(0, 1)


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
