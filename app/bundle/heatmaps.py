"""Heatmaps: maps of distances or errors as grey levels, and those drawn over the picture that they are of."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from app.bundle.decode import convert_colours, decode
from app.bundle.encode import enlarged, png
from app.bundle.header import PIXELS_CEILING
from app.bundle.manifest import InputSpec
from app.bundle.preprocess import placement
from app.bundle.regions import Box, Size

OVERLAY_SIDE = 1024  # pixels of an overlay's longer side, at most
# Okabe and Ito's orange and sky blue on a grey picture: colour-blind people tell the three apart, too.
_HEAT, _BOX, _EDGE = (230, 159, 0), (86, 180, 233), (0, 0, 0)
_MOST_HEAT, _GAMMA = 0.85, 0.9  # the picture stays visible where the map is white
_LINE = 1 / 400  # a box's line, as a share of the longer side


def grey_of_errors(errors: np.ndarray) -> np.ndarray:
    """(H, W) → uint8; the largest is white."""
    most = float(errors.max())
    return np.asarray(np.rint(errors * (255 / most if most > 0 else 0)).astype(np.uint8))


def grey_of_distances(distances: np.ndarray, height: int, width: int, white: float) -> np.ndarray:
    """(rows, columns) → (H, W) uint8: the smallest is black, `white` or the largest beyond it is white."""
    return grey_of_placed(distances, enlarged(distances, height, width), white)


def grey_of_placed(distances: np.ndarray, placed: np.ndarray, white: float) -> np.ndarray:
    """As `grey_of_distances`, of what has been enlarged to (H, W)."""
    least = float(distances.min())
    spread = max(white, float(distances.max())) - least
    grey = (placed - least) * (255 / spread if spread > 0 else 0)
    return np.asarray(np.rint(np.clip(grey, 0, 255)).astype(np.uint8))


def decoding_spec(spec: InputSpec) -> InputSpec:
    """What a picture is decoded for before it is drawn over: grey, and a JPEG at no more than the size needed."""
    side = OVERLAY_SIDE // 2  # a JPEG is decoded at twice the size that the spec asks for
    return spec.model_copy(update={"height": side, "width": side, "channels": 1, "tiles": None})


def overlay(
    data: bytes,
    size: Size,
    heatmap: np.ndarray,
    boxes: Sequence[Box],
    spec: InputSpec,
    max_pixels: int = PIXELS_CEILING,
) -> bytes:
    """PNG of the upright picture in grey, scaled down to OVERLAY_SIDE, with the heatmap in orange and boxes in blue.

    `size` is that of the upright picture, in whose pixels the boxes are; `heatmap` (H, W) uint8 is of the encoder's
    input, which `spec` describes.
    """
    grey_spec = decoding_spec(spec)
    decoded = decode(data, grey_spec, max_pixels)
    if not isinstance(decoded, Image.Image):
        decoded = Image.fromarray(decoded[..., 0] if decoded.shape[2] == 1 else decoded)
    picture = convert_colours(decoded, grey_spec)
    picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    across, down = picture.width / size.width, picture.height / size.height  # pixels drawn for one of the picture
    (left, top, right, bottom), (columns, rows), (x, y) = placement(*size, spec)
    covered = Image.fromarray(heatmap[y : y + rows, x : x + columns])
    corner = round(left * across), round(top * down)
    extent = max(1, round(right * across) - corner[0]), max(1, round(bottom * down) - corner[1])
    heat = Image.new("L", picture.size)
    heat.paste(covered.resize(extent, Image.Resampling.BILINEAR), corner)
    drawn = Image.composite(Image.new("RGB", picture.size, _HEAT), picture.convert("RGB"), heat.point(_OPACITIES))
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(max(drawn.size) * _LINE))
    for box in boxes:
        _draw_box(pen, [box[0] * across, box[1] * down, box[2] * across, box[3] * down], line, drawn.size)
    return png(drawn, compression=2)


_OPACITIES = [round(255 * _MOST_HEAT * (grey / 255) ** _GAMMA) for grey in range(256)]


def _draw_box(pen: ImageDraw.ImageDraw, sides: list[float], line: int, size: tuple[int, int]) -> None:
    """Around what it frames, as far as there is room; the dark edge shows it on bright pictures."""
    left, top, right, bottom = round(sides[0]), round(sides[1]), round(sides[2]) - 1, round(sides[3]) - 1
    for margin, width, colour in ((line + 1, 1, _EDGE), (line, line, _BOX)):
        x, y = max(0, left - margin), max(0, top - margin)
        to_x, to_y = min(size[0] - 1, right + margin), min(size[1] - 1, bottom + margin)
        pen.rectangle((x, y, max(x, to_x), max(y, to_y)), outline=colour, width=width)
