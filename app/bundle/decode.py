"""Encoded bytes → a picture in grey or RGB, eight bits a sample. The only importer of an image library.

libspng answers the plain PNG that most clients send, several times as fast as Pillow; Pillow answers
everything else. docs/decisions/0002 has the measurement. Both give the same pixels of a whole file: a test says so.
"""

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pyspng import _pyspng_c as spng

from app.bundle.header import (
    PIXELS_CEILING,
    PNG_MAGIC,
    Header,
    read_header,
    refuse_too_many,
    require_sound,
)
from app.bundle.manifest import InputSpec
from app.errors import BrokenImage, NotAnImage, TooManyPixels

# Colour modes whose conversion to 8-bit grey or RGB is agreed. Not here: 32-bit integers and floats (no agreed
# range), Lab and HSV (no agreed white).
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_BACKGROUNDS = {"black": (0, 0, 0, 255), "white": (255, 255, 255, 255)}
_ORIENTATION_TAG, _BITS_TAG = 0x0112, 0x0102
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_QUICK_BYTES, _QUICK_PIXELS = 64 << 10, 1 << 14
_SPNG_PIXELS = 1 << 20  # above it libspng, which never lets go of Python, would be noticed by everybody else
_TILE = 512  # pixels on a side: what colours are converted in, so that no whole picture is copied on the way
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# By depth, colour type, compression, filter and interlacing, as IHDR has them: 8-bit grey, 8-bit RGB.
_SPNG_LAYOUTS = {b"\x08\x00\x00\x00\x00": spng.SPNG_FMT_G8, b"\x08\x02\x00\x00\x00": spng.SPNG_FMT_RGB8}


def decode_if_quick(data: bytes, max_pixels: int = PIXELS_CEILING) -> np.ndarray | None:
    """As `decode`, where that surely takes microseconds: a plain PNG of few bytes and few pixels, and nothing else."""
    if len(data) > _QUICK_BYTES or not data.startswith(PNG_MAGIC) or _png_pixels(data) > _QUICK_PIXELS:
        return None
    layout = _plain_png_layout(data)
    return None if layout is None else _decode_plain_png(data, layout, max_pixels)


def decode(data: bytes, spec: InputSpec, max_pixels: int = PIXELS_CEILING) -> np.ndarray | Image.Image:
    """The upright picture in the file's own size and colours; an array (H, W, 1 or 3) where libspng made it."""
    if data.startswith(PNG_MAGIC) and _png_pixels(data) <= _SPNG_PIXELS:
        layout = _plain_png_layout(data)
        if layout is not None:
            return _decode_plain_png(data, layout, max_pixels)
    header = read_header(data, max_pixels)
    require_sound(data, header)
    return _decode_by_pillow(data, header, spec, max_pixels)


def _decode_plain_png(data: bytes, layout: Any, max_pixels: int) -> np.ndarray:
    refuse_too_many(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), max_pixels)
    try:
        pixels: np.ndarray = spng.spng_decode_image_bytes(data, layout)
    except RuntimeError as error:
        raise BrokenImage(f"broken PNG: {str(error).removeprefix('pyspng: ')}") from None
    return pixels


def _decode_by_pillow(data: bytes, header: Header, spec: InputSpec, max_pixels: int) -> Image.Image:
    kind = header.kind
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            if image.width * image.height != header.pixels:  # what was let in by its header must be what is decoded
                raise BrokenImage(
                    f"broken {kind}: {image.width} × {image.height} pixels, where its header was read as "
                    f"{header.width} × {header.height}"
                )
            _require_agreed(image.mode)
            if kind == "JPEG":
                side = 2 * max(spec.height, spec.width)
                image.draft("L" if spec.channels == 1 else "RGB", (side, side))
            image.load()
            if kind == "WEBP":  # two canvases and the frame, of no use any more
                image.fp = image._decoder = None  # type: ignore[attr-defined]
            if kind == "PNG" and "transparency" in image.info:
                return _with_png_alpha(image, depth=data[24])
            return _upright(image)
    except (TooManyPixels, BrokenImage, NotAnImage):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixels(f"the {kind} claims more pixels than the {max_pixels:,} allowed") from None
    except UnidentifiedImageError:
        raise BrokenImage(f"broken {kind}: its header does not parse") from None
    except MemoryError:
        raise
    except Exception as error:  # a parser fed hostile bytes raises nearly anything: all of it means 'broken'
        raise BrokenImage(f"broken {kind}: {error or type(error).__name__}") from error


def in_colours(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Mode L or RGB, as the manifest says: high byte of 16, palette expanded, alpha over the background."""
    _require_agreed(image.mode)
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    return _by_tiles(image, mode, lambda tile: _coloured(tile, spec, mode))


def _require_agreed(mode: str) -> None:
    if mode not in _EIGHT_BIT_MODES and not mode.startswith("I;16"):
        raise NotAnImage(f"pixels of mode {mode} have no agreed range: send 8 or 16 bits of grey, RGB or CMYK")


def _coloured(image: Image.Image, spec: InputSpec, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_high_bytes(image))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, _BACKGROUNDS[spec.background])
        image.alpha_composite(rgba)
    return image if image.mode == mode else image.convert(mode)


def _high_bytes(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) >> 8).astype(np.uint8)


def _by_tiles(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` of each pixel by itself; of large pictures a tile at a time."""
    width, height = image.size
    if width * height <= _TILE * _TILE:
        return convert(image)
    made = Image.new(mode, image.size)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            box = (left, top, min(width, left + _TILE), min(height, top + _TILE))
            made.paste(convert(image.crop(box)), box[:2])
    return made


def _with_png_alpha(image: Image.Image, depth: int) -> Image.Image:
    """The transparent colour brought to the depth of Pillow's pixels: it leaves that in the file's own."""
    colour = image.info["transparency"]
    if image.mode.startswith("I;16"):
        return _upright(_by_tiles(image, "LA", lambda tile: _with_deep_alpha(tile, colour)))
    if image.mode in ("1", "L") and depth < 8:
        image.info["transparency"] = colour * (255 // (2**depth - 1))
    if image.mode == "RGB" and depth == 16:
        del image.info["transparency"]  # the low bytes that tell it from its neighbours are gone
    return _upright(image)


def _with_deep_alpha(image: Image.Image, colour: int) -> Image.Image:
    opaque = (np.asarray(image) != colour).astype(np.uint8) * 255
    return Image.merge("LA", [Image.fromarray(_high_bytes(image)), Image.fromarray(opaque)])


def _upright(image: Image.Image) -> Image.Image:
    """The picture as it is to be seen; the 12 bits of a TIFF, which Pillow leaves as they are, as the upper of 16."""
    turn = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    if image.mode == "I;16" and getattr(image, "tag_v2", {}).get(_BITS_TAG) == (12,):
        image = image.point(lambda level: level * 16)
    return image if turn is None else image.transpose(turn)


def _plain_png_layout(data: bytes) -> Any:
    """libspng's layout for a PNG that is nothing but IHDR, one IDAT and IEND, 8 bits, not interlaced; else None.

    libspng would inflate compressed text chunks, and does not check sums; so only files without the first, and
    with the second right, are for it. In larger files IDAT is split, and Pillow is as fast.
    """
    layout = _SPNG_LAYOUTS.get(data[24:29])
    if layout is None or data[8:16] != b"\x00\x00\x00\rIHDR" or data[37:41] != b"IDAT":
        return None
    end = 41 + int.from_bytes(data[33:37])
    if data[end + 4 : end + 16] != _PNG_END:
        return None
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]):
        return None
    if zlib.crc32(data[37:end]) != int.from_bytes(data[end : end + 4]):
        return None
    return layout


def _png_pixels(data: bytes) -> int:
    """As IHDR claims."""
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
