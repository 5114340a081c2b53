"""Pictures drawn by code: the golden inputs, and the samples on pages and in docs. None comes from a data set."""

import numpy as np
from PIL import Image, ImageDraw

from app.bundle.encode import png

# Outlines on a 28 × 28 grid, light on dark like Fashion-MNIST: (grey level, polygon), painted in this order.
_GARMENTS: dict[str, list[tuple[int, list[tuple[float, float]]]]] = {
    "t-shirt": [
        (
            190,
            [
                (9, 3),
                (12, 5),
                (16, 5),
                (19, 3),
                (26, 8),
                (23, 13),
                (20, 11),
                (20, 26),
                (8, 26),
                (8, 11),
                (5, 13),
                (2, 8),
            ],
        ),
        (150, [(12, 5), (16, 5), (14, 8)]),
    ],
    "trouser": [
        (200, [(9, 1), (19, 1), (20, 27), (15.5, 27), (14, 8), (12.5, 27), (8, 27)]),
        (150, [(9, 1), (19, 1), (19, 3), (9, 3)]),
    ],
    "sneaker": [
        (210, [(1, 14), (4, 13), (7, 15), (12, 11), (15, 11), (19, 15), (26, 17), (27, 20), (1, 20)]),
        (120, [(1, 19), (27, 19), (27, 21), (1, 21)]),
        (90, [(11, 13), (12, 12), (16, 15), (15, 16)]),
    ],
    "bag": [
        (90, [(9, 10), (10, 4), (18, 4), (19, 10), (17, 10), (16, 6), (12, 6), (11, 10)]),
        (200, [(3, 10), (25, 10), (26, 25), (2, 25)]),
        (150, [(3, 14), (25, 14), (25, 15), (3, 15)]),
    ],
}
GARMENTS = tuple(_GARMENTS)


def garment(kind: str, side: int = 28) -> Image.Image:
    """A grey silhouette, drawn at four times the size and averaged down for soft edges."""
    large = Image.new("L", (4 * side, 4 * side))
    pen = ImageDraw.Draw(large)
    for level, outline in _GARMENTS[kind]:
        pen.polygon([(x * 4 * side / 28, y * 4 * side / 28) for x, y in outline], fill=level)
    return large.reduce(4)


def rings() -> Image.Image:
    """An image outside the domain of garments."""
    return Image.fromarray(_rings()[10:38, 18:46])


def _rings() -> np.ndarray:
    y, x = np.mgrid[0:48, 0:64]
    return np.asarray(127 + 127 * np.sin(np.hypot(x - 32, y - 24) / 3), np.uint8)


def samples() -> dict[str, Image.Image]:
    """File name (without suffix) in app/web/samples → image."""
    return {**{kind: garment(kind) for kind in GARMENTS}, "rings": rings()}


def golden_files() -> list[bytes]:
    """PNGs that must decode to the same pixels on every machine: every colour mode, larger and smaller than inputs."""
    y, x = np.mgrid[0:48, 0:64]
    ramp = (x * 4).astype(np.uint8)
    circles = _rings()
    colour = np.stack([ramp, circles, (y * 5).astype(np.uint8)], axis=-1)
    drawn = [
        *(garment(kind) for kind in GARMENTS),
        Image.fromarray(circles[:28, :28]),
        Image.fromarray(colour),
        Image.fromarray(np.dstack([colour, ramp])),
        Image.fromarray((x * 1024 + y).astype(np.uint16)),
        Image.fromarray(colour).quantize(16),
        Image.fromarray(circles > 127),
        Image.fromarray(ramp[:1, 40:41]),
        garment("sneaker", side=301),
    ]
    return [png(image) for image in drawn]
