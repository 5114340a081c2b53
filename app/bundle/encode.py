"""Images → bytes of PNG and WebP files."""

import io
from functools import cache

import numpy as np
from PIL import Image

_AROUND = 4  # cells on each side that a smoothed value depends on
_NOTHING = 1e-7
_SMOOTHED = 0.5  # cells: the spread of the Gaussian by which an enlarged map is averaged


def png(image: Image.Image, compression: int = 6) -> bytes:
    """`compression` is zlib's level: 2 makes photographs a tenth larger, in a fifth of the time."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=compression)
    return buffer.getvalue()


def stretched(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(rows, columns) → (height, width) float32, bilinear."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def enlarged(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(…, rows, columns) → (…, height, width), bilinear and lightly smoothed."""
    rows, columns = values.shape[-2:]
    return np.asarray(_enlarging(rows, height) @ values @ _enlarging(columns, width).T)


def enlarged_by(values: np.ndarray, factor: int) -> np.ndarray:
    """(rows, columns) → `factor` times as many of both, as `enlarged` does away from the border, for any size."""
    return np.ascontiguousarray(_stretch(_stretch(values, factor).T, factor).T)


def _stretch(values: np.ndarray, factor: int) -> np.ndarray:
    """Rows, each a weighted mean of those around it; beyond the border the outermost are repeated."""
    weights = _enlarging(2 * _AROUND + 1, factor * (2 * _AROUND + 1))[factor * _AROUND : factor * (_AROUND + 1)]
    padded = np.pad(values, ((_AROUND, _AROUND), (0, 0)), mode="edge")
    result = np.zeros((factor * len(values), values.shape[1]), np.float32)
    for phase, row in enumerate(weights):
        for at, weight in enumerate(row):
            if weight > _NOTHING:
                result[phase::factor] += weight * padded[at : at + len(values)]
    return result


@cache
def _enlarging(cells: int, side: int) -> np.ndarray:
    """(side, cells): each row interpolates between the centres of cells, then averages by a Gaussian of half a cell."""
    at = _centres(cells, side)
    weights = np.exp(-0.5 * np.square((at[:, None] - at) / _SMOOTHED))
    weights /= weights.sum(axis=1, keepdims=True)
    matrix: np.ndarray = (weights @ interpolation(cells, side)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def interpolation(cells: int, side: int) -> np.ndarray:
    """(side, cells): each row interpolates between the centres of cells."""
    at = np.clip(_centres(cells, side), 0, cells - 1)
    return np.asarray(np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0))


def _centres(cells: int, side: int) -> np.ndarray:
    """(side,) where the centre of each pixel lies, in cells from the first one's centre."""
    return np.asarray((np.arange(side) + 0.5) * cells / side - 0.5)


def png_of(pixels: np.ndarray, longest: int | None = None) -> bytes:
    """(H, W, 1 or 3) uint8 → PNG; a longer side of more than `longest` pixels is scaled down to it."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if longest is not None:
        image.thumbnail((longest, longest))
    return png(image)


def thumbnail_of(pixels: np.ndarray, longest: int, quality: int) -> bytes:
    """(H, W, 1 or 3) uint8 → WebP, scaled down to a longer side of at most `longest` pixels."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()
