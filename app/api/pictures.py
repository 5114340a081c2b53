"""Results as PNG: images and explanation maps."""

import base64

import numpy as np

from app.bundle.encode import png_of, stretched


def unit_png(image: np.ndarray) -> bytes:
    """(H, W, C) floats in 0…1 → 8-bit PNG"""
    return png_of(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))


def explanation_png(shares: np.ndarray, height: int, width: int) -> bytes:
    """(rows, columns) shares of a label's logit → H × W grey PNG: white speaks for the label, black against it.

    128 is indifference. The largest share, for or against, is white or black.
    """
    most = float(np.abs(shares).max())
    grey = 127.5 + shares * (127.5 / most if most > 0 else 0)
    return png_of(np.rint(np.clip(stretched(grey, height, width), 0, 255)).astype(np.uint8)[..., None])


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
