"""Masks: pictures that show where an image has defects. They are placed as their image is, so that both compare.

Any pixel that is not black is defect. In a JPEG it must be brighter than mid-grey, because compression blurs black.
"""

import numpy as np
from PIL import Image

from app.bundle.decode import decode
from app.bundle.manifest import InputSpec
from app.bundle.preprocess import placement

_JPEG_MAGIC, _MID_GREY = b"\xff\xd8", 127


def decode_mask(data: bytes, spec: InputSpec) -> np.ndarray:
    """An encoded file → (h, w) bool, in the mask's own size; raises ImageError."""
    image = decode(data, spec)
    darkest = _MID_GREY if data.startswith(_JPEG_MAGIC) else 0
    if isinstance(image, Image.Image):
        if image.mode.startswith("I;16"):
            return np.asarray(image) > darkest
        if "A" in image.getbands() or "transparency" in image.info:  # what is transparent is not painted
            clear = Image.new("RGBA", image.size, (0, 0, 0, 255))
            clear.alpha_composite(image.convert("RGBA"))
            image = clear
        image = np.asarray(image.convert("RGB"))
    return np.asarray((image > darkest).any(axis=2))


def place_mask(mask: np.ndarray, height: int, width: int, spec: InputSpec) -> np.ndarray:
    """(h, w) bool or numbers of an image of height × width, whatever the mask's own size → (H, W), or the shape of
    its map in tiles: the nearest pixels.

    A number that falls between the pixels of a smaller input marks those that it falls into. False and 0 mark nothing.
    """
    (left, top, right, bottom), (columns, rows), corner = placement(width, height, spec)
    across, down = mask.shape[1] / width, mask.shape[0] / height  # mask pixels per image pixel
    x = _centres(columns, left * across, right * across).clip(0, mask.shape[1] - 1)
    y = _centres(rows, top * down, bottom * down).clip(0, mask.shape[0] - 1)
    placed = mask[np.ix_(y, x)]
    lost = np.setdiff1d(mask, placed)
    if lost.any():
        marked = np.argwhere(np.isin(mask, lost[lost > 0]))  # (n, 2) of rows, columns
        scale = np.array([rows / ((bottom - top) * down), columns / ((right - left) * across)])
        at = np.floor((marked + 0.5 - (top * down, left * across)) * scale).astype(int)
        free = ((at >= 0) & (at < (rows, columns))).all(axis=1)
        free[free] = placed[tuple(at[free].T)] == 0
        placed[tuple(at[free].T)] = mask[tuple(marked[free].T)]
    return _framed(placed, corner, spec)


def place_image(height: int, width: int, spec: InputSpec) -> np.ndarray:
    """(H, W) bool: where an image of height × width lies in the input; False on the bars of `pad`."""
    _, (columns, rows), corner = placement(width, height, spec)
    return _framed(np.ones((rows, columns), bool), corner, spec)


def _centres(count: int, start: float, end: float) -> np.ndarray:
    """The pixels in which the centres of `count` equal spans lie."""
    return (start + (np.arange(count) + 0.5) * ((end - start) / count)).astype(int)


def _framed(placed: np.ndarray, corner: tuple[int, int], spec: InputSpec) -> np.ndarray:
    if spec.tiles is not None:
        return placed
    frame = np.zeros((spec.height, spec.width), placed.dtype)
    left, top = corner
    frame[top : top + placed.shape[0], left : left + placed.shape[1]] = placed
    return frame
