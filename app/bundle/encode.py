"""Images → PNG bytes."""

import io

import numpy as np
from PIL import Image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def stretched(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(rows, columns) → (height, width) float32, bilinear."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def png_of(pixels: np.ndarray, longest: int | None = None) -> bytes:
    """(H, W, 1 or 3) uint8 → PNG; a longer side of more than `longest` pixels is scaled down to it."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if longest is not None:
        image.thumbnail((longest, longest))
    return png(image)
