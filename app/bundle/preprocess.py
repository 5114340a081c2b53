"""Encoded bytes, or pixels, → the encoder's (H, W, C) uint8, from the manifest alone.

Training and serving both come through here, so what one saw the other sees. What becomes of every kind of
image is written in docs/preprocessing.md and held by tests/app/bundle/test_preprocess.py.
"""

import numpy as np
from PIL import Image

from app.bundle.decode import decode, decode_if_quick, in_colours
from app.bundle.header import PIXELS_CEILING
from app.bundle.manifest import InputSpec

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FILLS = {"black": 0, "white": 255}
_REDUCING_GAP = 2.0  # large pictures are box-averaged to twice the size, then filtered


def preprocess(data: bytes, spec: InputSpec, max_pixels: int = PIXELS_CEILING) -> np.ndarray:
    """The bytes of one file → (H, W, C) uint8."""
    picture = decode(data, spec, max_pixels)
    if isinstance(picture, Image.Image):
        return _fit(in_colours(picture, spec), spec)
    return _fit_pixels(picture, spec)


def preprocess_if_quick(data: bytes, spec: InputSpec, max_pixels: int = PIXELS_CEILING) -> np.ndarray | None:
    """The same, where that surely takes microseconds."""
    picture = decode_if_quick(data, max_pixels)
    return None if picture is None else _fit_pixels(picture, spec)


def _fit_pixels(picture: np.ndarray, spec: InputSpec) -> np.ndarray:
    return picture if picture.shape == spec.shape else preprocess_pixels(picture, spec)


def preprocess_pixels(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Pixels that lie in an array, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8, as if they had come in a PNG."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))):
        raise ValueError(f"{pixels.dtype} {pixels.shape}: uint8 of (H, W) or (H, W, 1, 3 or 4) is expected")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return _fit(in_colours(Image.fromarray(pixels), spec), spec)


def _fit(image: Image.Image, spec: InputSpec) -> np.ndarray:
    width, height = image.size
    goal = (spec.width, spec.height)
    box = (0.0, 0.0, float(width), float(height))
    size = goal
    if spec.resize == "crop":
        scale = min(width / spec.width, height / spec.height)
        # Held inside the picture, which rounding would leave by a hair.
        left, top = max(0.0, (width - spec.width * scale) / 2), max(0.0, (height - spec.height * scale) / 2)
        box = (left, top, min(width, left + spec.width * scale), min(height, top + spec.height * scale))
    elif spec.resize == "pad":
        scale = max(width / spec.width, height / spec.height)
        size = (max(1, round(width / scale)), max(1, round(height / scale)))
    if image.size != size or box != (0.0, 0.0, float(width), float(height)):
        image = image.resize(size, _FILTERS[spec.filter], box, reducing_gap=_REDUCING_GAP)
    if size != goal:
        canvas = Image.new(image.mode, goal, _FILLS[spec.background] if spec.channels == 1 else spec.background)
        canvas.paste(image, ((goal[0] - size[0]) // 2, (goal[1] - size[1]) // 2))
        image = canvas
    return np.asarray(image).reshape(spec.shape)
