"""Results that are looked at: pixels, maps of errors and maps of reasons, as PNG."""

import base64

import numpy as np

from app.bundle.encode import png_of, stretched


def of_unit(image: np.ndarray) -> bytes:
    """(H, W, C) in 0…1 → a PNG of eight bits."""
    return png_of(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))


def of_errors(image: np.ndarray, reconstruction: np.ndarray) -> bytes:
    """(H, W, C) uint8 and 0…1 → a grey PNG: how far each pixel is off, its channels' mean, white where the most."""
    off = np.abs(reconstruction - image.astype(np.float32) / 255).mean(axis=2)
    most = float(off.max())
    return png_of(np.rint(off * (255 / most if most > 0 else 0)).astype(np.uint8)[..., None])


def of_reasons(shares: np.ndarray, height: int, width: int) -> bytes:
    """(rows, columns) shares of a label's logit → a grey PNG, H × W: 128 is indifference, white speaks for the label.

    What speaks against it is dark, on the same scale: the largest share, for or against, is white or black.
    """
    most = float(np.abs(shares).max())
    grey = 127.5 + shares * (127.5 / most if most > 0 else 0)
    return png_of(np.rint(np.clip(stretched(grey, height, width), 0, 255)).astype(np.uint8)[..., None])


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
