"""Defects drawn into sound pictures: choices about anomaly scores are made by these, never by a test part.

    scratch, crack      a bent or a jagged line
    spot, stain         a small hard, or a large soft, change of colour
    foreign, paste      a piece of a picture of something else, or of another sound picture, turned and scaled
    blur, erase         structure is smeared, or missing
    warp, rough         structure is bent, or coarser

Sizes and contrasts are drawn over an order of magnitude each, from what nobody could miss to what nobody could see.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("scratch", "crack", "spot", "stain", "foreign", "paste", "blur", "erase", "warp", "rough")
_FINER = 4  # times, at which lines are drawn
_STEP = 0.02  # of the short side: a line turns after so much
_VISIBLE = 0.3  # share of a change from which on a pixel belongs to the mask

Rng = np.random.Generator
Picture = np.ndarray  # (H, W, 3) uint8


@dataclass(frozen=True)
class Sources:
    """Pictures that pieces are cut from."""

    sound: Callable[[], Picture]  # others of the same kind
    foreign: Callable[[], Picture]


@dataclass(frozen=True)
class _Change:
    pixels: np.ndarray  # (H, W, 3) what the picture becomes
    share: np.ndarray  # (H, W) in 0…1, of these pixels
    mask: np.ndarray  # (H, W) bool


def draw(picture: Picture, kind: str, rng: Rng, sources: Sources) -> tuple[Picture, np.ndarray]:
    """(the picture with one defect, its mask (H, W) bool)."""
    change = _CHANGES[kind](picture.astype(np.float32), rng, sources)
    pixels = change.pixels.mean(axis=2, keepdims=True) if _is_grey(picture) else change.pixels
    share = change.share[..., None]
    drawn = picture * (1 - share) + np.clip(pixels, 0, 255) * share
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8), change.mask


def _line(picture: np.ndarray, rng: Rng, jagged: float) -> _Change:
    height, width, _ = picture.shape
    short = min(height, width)
    length, thick = _between(rng, 0.06, 0.6) * short, _between(rng, 0.004, 0.02) * short
    canvas = Image.new("L", (width * _FINER, height * _FINER))
    pen, at = ImageDraw.Draw(canvas), rng.uniform(0.1, 0.9, 2) * (width, height)
    angle, bend, steps = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.03), max(4, int(length / (_STEP * short)))
    for _ in range(steps):
        angle += bend + rng.normal(0, jagged)
        end = at + length / steps * np.array([np.cos(angle), np.sin(angle)])
        pen.line([*(at * _FINER), *(end * _FINER)], 255, max(1, round(_FINER * thick * rng.uniform(0.6, 1.4))))
        at = end
    line = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    contrast = _between(rng, 0.1, 0.5)
    return _Change(picture + _shade(picture, rng, contrast), _soft(line, max(0.3, 0.002 * short)), line > _VISIBLE)


def _scratch(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    return _line(picture, rng, jagged=0.06)


def _crack(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    return _line(picture, rng, jagged=0.6)


def _spot(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    short = min(picture.shape[:2])
    mask = _blob(picture, rng, _between(rng, 0.015, 0.06) * short)
    shade = _shade(picture, rng, _between(rng, 0.12, 0.6))
    return _Change(picture + shade, _soft(mask, max(0.4, 0.003 * short)), mask)


def _stain(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    size = _between(rng, 0.05, 0.4) * min(picture.shape[:2])
    share = _soft(_blob(picture, rng, size), max(0.5, rng.uniform(0.03, 0.2) * size))
    return _Change(picture + _shade(picture, rng, _between(rng, 0.04, 0.25)), share, share > _VISIBLE)


def _foreign(picture: np.ndarray, rng: Rng, sources: Sources) -> _Change:
    patch = _patch(picture, rng)
    piece = _turned(sources.foreign(), patch.mask, rng)
    if rng.random() < 0.5:
        piece += _step_at(picture, piece, patch.mask)
    return _Change(piece, patch.share * rng.uniform(0.4, 1), patch.mask)


def _paste(picture: np.ndarray, rng: Rng, sources: Sources) -> _Change:
    patch = _patch(picture, rng)
    piece = _turned(sources.sound(), patch.mask, rng)
    return _Change(piece + _step_at(picture, piece, patch.mask), patch.share, patch.mask)


def _blur(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    patch, sigma = _patch(picture, rng), rng.uniform(0.01, 0.04) * min(picture.shape[:2])
    along = max(2, int(2 * sigma))
    boxes = ((along, 0), (0, along))
    blur = ImageFilter.GaussianBlur(sigma) if rng.random() < 0.5 else ImageFilter.BoxBlur(boxes[rng.integers(2)])
    return _Change(_filtered(picture, blur), patch.share, patch.mask)


def _erase(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    patch = _patch(picture, rng)
    around = picture[_ring(patch.mask)]
    level = around.mean(axis=0) if len(around) else picture.mean(axis=(0, 1))
    return _Change(level + rng.normal(0, 2, (*picture.shape[:2], 1)), patch.share, patch.mask)


def _warp(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    patch = _patch(picture, rng)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    step = _between(rng, 0.15, 0.5) * patch.size
    y += step * _cloud(picture, rng, patch.size / 2)
    x += step * _cloud(picture, rng, patch.size / 2)
    return _Change(_at(picture, y, x), patch.share, patch.mask)


def _rough(picture: np.ndarray, rng: Rng, _: Sources) -> _Change:
    patch = _patch(picture, rng)
    smooth = _filtered(picture, ImageFilter.GaussianBlur(0.05 * min(picture.shape[:2])))
    grain = _cloud(picture, rng, _between(rng, 1, 4))[..., None] * _between(rng, 3, 20)
    return _Change(smooth + (picture - smooth) * _between(rng, 1.5, 4) + grain, patch.share, patch.mask)


_CHANGES: dict[str, Callable[[np.ndarray, Rng, Sources], _Change]] = dict(
    zip(KINDS, (_scratch, _crack, _spot, _stain, _foreign, _paste, _blur, _erase, _warp, _rough), strict=True)
)


@dataclass(frozen=True)
class _Patch:
    size: float  # pixels across
    share: np.ndarray
    mask: np.ndarray


def _patch(picture: np.ndarray, rng: Rng) -> _Patch:
    size = _between(rng, 0.06, 0.35) * min(picture.shape[:2])
    mask = _blob(picture, rng, size)
    return _Patch(size, _soft(mask, max(0.5, rng.uniform(0.01, 0.06) * size)), mask)


def _blob(picture: np.ndarray, rng: Rng, size: float) -> np.ndarray:
    """(H, W) bool: an ellipse with an uneven edge, about `size` pixels across."""
    height, width, _ = picture.shape
    stretch, angle = _between(rng, 1, 2.5) ** 0.5, rng.uniform(0, np.pi)
    long, short = size / 2 * stretch, size / 2 / stretch
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y -= rng.uniform(0.05, 0.95) * height
    x -= rng.uniform(0.05, 0.95) * width
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.hypot(along / long, across / short)
    blob = radius + 0.25 * _cloud(picture, rng, max(2.0, size / 3)) < 1
    return np.asarray(blob if blob.sum() > 4 else radius < max(1.0, 1.5 / short))


def _cloud(picture: np.ndarray, rng: Rng, scale: float) -> np.ndarray:
    """(H, W) smooth noise of variance about 1, `scale` pixels from one extreme to the next."""
    height, width, _ = picture.shape
    cells = rng.normal(size=(int(height / scale) + 2, int(width / scale) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


def _shade(picture: np.ndarray, rng: Rng, contrast: float) -> np.ndarray:
    """(3,) lighter or darker; in a colour in half of the coloured pictures."""
    shade = np.full(3, contrast * 255 * rng.choice([-1, 1]), np.float32)
    return shade if _is_grey(picture) or rng.random() < 0.5 else shade * rng.uniform(0.2, 1, 3)


def _turned(source: Picture, mask: np.ndarray, rng: Rng) -> np.ndarray:
    """(H, W, 3): the source turned and scaled about the middle of the mask."""
    (height, width), (rows, columns, _) = mask.shape, source.shape
    scale = _between(rng, 0.7, 1.5) * max(height / rows, width / columns)
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 0.1, 2)
    middle = [at.mean() for at in np.nonzero(mask)]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = (y - middle[0]) / scale, (x - middle[1]) / scale
    cosine, sine = np.cos(angle), np.sin(angle)
    return _at(
        source.astype(np.float32),
        (0.5 + shift[0]) * rows + cosine * y - sine * x,
        (0.5 + shift[1]) * columns + cosine * x + sine * y,
    )


def _step_at(picture: np.ndarray, piece: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(3,) what a piece must be lighter by, so that it has the picture's level around the mask."""
    ring = _ring(mask)
    return np.asarray((picture[ring] - piece[ring]).mean(axis=0) if ring.any() else np.zeros(3))


def _ring(mask: np.ndarray) -> np.ndarray:
    grown = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(5))
    return (np.asarray(grown) > 0) & ~mask


def _soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    image = Image.fromarray((mask * 255.0).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / 255


def _filtered(picture: np.ndarray, by: ImageFilter.Filter | ImageFilter.MultibandFilter) -> np.ndarray:
    return np.asarray(Image.fromarray(picture.astype(np.uint8)).filter(by), np.float32)


def _at(source: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(H, W, 3), bilinear; beyond its edges the source is mirrored."""
    y, x = (_mirrored(at, side) for at, side in zip((y, x), source.shape, strict=False))
    top, left = (np.minimum(at.astype(int), side - 2) for at, side in zip((y, x), source.shape, strict=False))
    down, right = (y - top)[..., None], (x - left)[..., None]
    upper = source[top, left] * (1 - right) + source[top, left + 1] * right
    lower = source[top + 1, left] * (1 - right) + source[top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _mirrored(at: np.ndarray, side: int) -> np.ndarray:
    folded = np.mod(at, 2 * (side - 1))
    return np.where(folded > side - 1, 2 * (side - 1) - folded, folded)


def _is_grey(picture: np.ndarray) -> bool:
    return bool((picture == picture[..., :1]).all())


def _between(rng: Rng, low: float, high: float) -> float:
    """Its logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
