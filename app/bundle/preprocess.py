"""Encoded bytes, or pixels → the encoder's input, (H, W, C) uint8. Only the manifest decides how.

Training and serving both use this module, so that models see the same pixels in both. docs/preprocessing.md says what
happens to each kind of image; tests/app/bundle/test_preprocess.py checks it.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from app.bundle.decode import convert_colours, decode, decode_if_quick
from app.bundle.header import PIXELS_CEILING, Header
from app.bundle.manifest import MAP_STEP, InputSpec
from app.bundle.tiles import scaled_size

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FILLS = {"black": 0, "white": 255}
_REDUCING_GAP = 2.0  # large images are box-averaged to twice the target size before they are filtered


def preprocess(
    data: bytes, spec: InputSpec, max_pixels: int = PIXELS_CEILING, header: Header | None = None
) -> np.ndarray:
    """One file → (H, W, C) uint8; with tiles, of the picture's own size, scaled. `header` is the file's, if known."""
    image = decode(data, spec, max_pixels, header)
    if isinstance(image, Image.Image):
        return _fit(convert_colours(image, spec), spec)
    return _fit_pixels(image, spec)


def preprocess_if_quick(data: bytes, spec: InputSpec, max_pixels: int = PIXELS_CEILING) -> np.ndarray | None:
    """The same for files that take microseconds; None for all others."""
    image = decode_if_quick(data, max_pixels)
    return None if image is None else _fit_pixels(image, spec)


def _fit_pixels(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    return image if image.shape == spec.shape and spec.tiles is None else preprocess_pixels(image, spec)


def preprocess_pixels(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, processed as if it had come in a PNG."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))):
        raise ValueError(f"{pixels.dtype} {pixels.shape}: expected uint8 of (H, W) or (H, W, 1, 3 or 4)")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return _fit(convert_colours(Image.fromarray(pixels), spec), spec)


class Placement(NamedTuple):
    """Where an image lies in the encoder's input: `box` of the image is scaled to `size`, and put at `corner`.

    With tiles, where it lies in its map, as that is shown: the box may end beyond the image.
    """

    box: tuple[float, float, float, float]  # left, top, right, bottom, in the image's pixels
    size: tuple[int, int]  # width, height
    corner: tuple[int, int]  # left, top; what the image leaves free of the input are the bars of `pad`


def placement(width: int, height: int, spec: InputSpec) -> Placement:
    """Of an upright image of that size."""
    if spec.tiles is not None:
        size = scaled_size(width, height, spec)
        columns, rows = (-(-side // MAP_STEP) for side in size)
        box = (0.0, 0.0, columns * MAP_STEP * width / size[0], rows * MAP_STEP * height / size[1])
        return Placement(box, (columns, rows), (0, 0))
    target = (spec.width, spec.height)
    box = (0.0, 0.0, float(width), float(height))
    if spec.resize == "crop":
        scale = min(width / spec.width, height / spec.height)
        # Clipped to the image, because rounding may exceed it slightly.
        left, top = max(0.0, (width - spec.width * scale) / 2), max(0.0, (height - spec.height * scale) / 2)
        box = (left, top, min(width, left + spec.width * scale), min(height, top + spec.height * scale))
    elif spec.resize == "pad":
        scale = max(width / spec.width, height / spec.height)
        size = (max(1, round(width / scale)), max(1, round(height / scale)))
        return Placement(box, size, ((spec.width - size[0]) // 2, (spec.height - size[1]) // 2))
    return Placement(box, target, (0, 0))


def _fit(image: Image.Image, spec: InputSpec) -> np.ndarray:
    if spec.tiles is not None:
        size = scaled_size(*image.size, spec)
        if image.size != size:
            image = image.resize(size, _FILTERS[spec.filter], reducing_gap=_REDUCING_GAP)
        return np.asarray(image).reshape(size[1], size[0], spec.channels)
    box, size, corner = placement(*image.size, spec)
    if image.size != size or box != (0.0, 0.0, *map(float, image.size)):
        image = image.resize(size, _FILTERS[spec.filter], box, reducing_gap=_REDUCING_GAP)
    pixels = np.asarray(image).reshape(size[1], size[0], spec.channels)
    return pixels if size == (spec.width, spec.height) else _padded(pixels, corner, spec)


def _padded(pixels: np.ndarray, corner: tuple[int, int], spec: InputSpec) -> np.ndarray:
    """(h, w, C), neither side longer than the spec's → (H, W, C), with the image at the corner."""
    height, width, _ = pixels.shape
    left, top = corner
    if spec.padding == "edge":
        bars = (top, spec.height - height - top), (left, spec.width - width - left), (0, 0)
        return np.pad(pixels, bars, mode="edge")
    canvas = np.empty(spec.shape, np.uint8)
    canvas[:] = _FILLS[spec.background] if spec.padding == "background" else spec.padding
    canvas[top : top + height, left : left + width] = pixels
    return canvas
