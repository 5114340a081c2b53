"""Encoded bytes → an image in grey or RGB with 8 bits per sample. Only this package imports image libraries.

libspng decodes the plain PNGs that most clients send, libjpeg-turbo plain JPEGs, several times as fast as Pillow, which
decodes everything else (docs/decisions/0002). Tests check that they give the same pixels. Where one of the two warns of
anything, Pillow has the last word.
"""

import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from pyspng import _pyspng_c as spng

from app.bundle.header import (
    FORMATS,
    PIXELS_CEILING,
    PNG_MAGIC,
    Header,
    needed_size,
    read_header,
    refuse_too_many,
    require_sound,
)
from app.bundle.manifest import InputSpec
from app.errors import BrokenImage, NotAnImage, TooManyPixels

# Modes with one accepted conversion to 8-bit grey or RGB. Integers and floats of 32 bits have no fixed range, Lab and
# HSV no fixed white point.
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
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

_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
_TURNING = (b"Exif\0\0", b"tiff:Orientation")  # what a JPEG's metadata contain where they say how to turn it

_QUICK_BYTES, _QUICK_PIXELS = 64 << 10, 1 << 14
_SPNG_PIXELS = 1 << 20  # libspng holds the GIL: larger images would stall all other requests
_MOST_RIFF_CHUNKS = 4096  # of a WebP, among which metadata are looked for; a file of megabytes may have millions
_TILE = 512  # side in pixels; colours are converted tile by tile, so that no second copy of the image exists
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# IHDR's depth, colour type, compression, filter and interlacing → format: 8-bit grey, 8-bit RGB.
_SPNG_LAYOUTS = {b"\x08\x00\x00\x00\x00": spng.SPNG_FMT_G8, b"\x08\x02\x00\x00\x00": spng.SPNG_FMT_RGB8}


def decode_if_quick(data: bytes, max_pixels: int = PIXELS_CEILING) -> np.ndarray | None:
    """Like `decode`, but only for files that take microseconds: small plain PNGs. None for all others."""
    if len(data) > _QUICK_BYTES or not data.startswith(PNG_MAGIC) or _png_pixels(data) > _QUICK_PIXELS:
        return None
    layout = _plain_png_layout(data)
    return None if layout is None else _decode_plain_png(data, layout, max_pixels)


def decode(
    data: bytes, spec: InputSpec, max_pixels: int = PIXELS_CEILING, header: Header | None = None
) -> np.ndarray | Image.Image:
    """The upright image in the file's own colours and size, a JPEG perhaps reduced; an (H, W, 1 or 3) array if Pillow
    did not decode it. `header` is the file's, where the caller has read it."""
    if data.startswith(PNG_MAGIC) and _png_pixels(data) <= _SPNG_PIXELS:
        layout = _plain_png_layout(data)
        if layout is not None:
            return _decode_plain_png(data, layout, max_pixels)
    header = header or read_header(data, max_pixels)
    require_sound(data, header)
    pixels = _decode_plain_jpeg(data, header, spec) if header.kind == "JPEG" else None
    return _decode_by_pillow(data, header, spec, max_pixels) if pixels is None else pixels


class Dimensions(NamedTuple):
    """Of a file's upright image, according to its metadata."""

    height: int
    width: int
    grey: bool  # it has no colour channels; others may be grey all the same


def read_dimensions(path: Path) -> Dimensions:
    """Reads what Pillow needs to open the file: no pixels are decoded. Not for several threads at once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # `decode` refuses these as well
            with Image.open(path, formats=FORMATS) as image:
                # Of a PNG, Pillow's own getexif decodes the pixels to find an orientation that follows them.
                orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
                sideways = orientation in _SIDEWAYS and image.format != "TIFF"  # of which Pillow gives the upright size
                height, width = image.size if sideways else image.size[::-1]
                return Dimensions(height, width, image.mode in _GREY_MODES or image.mode.startswith("I;16"))
    except UnidentifiedImageError:
        raise NotAnImage(f"not an image in a format that Graft reads ({', '.join(FORMATS)})") from None
    except OSError as error:
        raise BrokenImage(f"its header cannot be read: {error}") from None
    except Exception as error:  # parsers raise nearly any exception on hostile bytes
        raise BrokenImage(f"its header does not parse: {error or type(error).__name__}") from None


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the upright image in a file that was decoded before; of its pixels none is decoded."""
    header = read_header(data)
    if header.kind == "PNG" and _plain_png_layout(data) is not None:
        return header.width, header.height
    if header.kind == "WEBP":  # to open one takes memory for two canvases
        exif = Image.new("1", (1, 1))
        chunks = islice(_riff_chunks(data), _MOST_RIFF_CHUNKS)
        exif.info = {name: text for name, text in chunks if name in ("exif", "xmp")}
        orientation = exif.getexif().get(_ORIENTATION_TAG, 1)
    else:
        with Image.open(io.BytesIO(data), formats=(header.kind,)) as image:
            if header.kind == "TIFF":  # of which Pillow gives the upright size
                return image.size
            if header.kind == "PNG" and "exif" not in image.info:  # it may follow the pixels
                image.info |= {name: text for name, text in _png_chunks(data) if name == "exif"}
            orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    return (header.height, header.width) if orientation in _SIDEWAYS else (header.width, header.height)


def _png_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = len(PNG_MAGIC)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8].decode("latin-1").lower(), data[at + 8 : at + 8 + length]
        at += 12 + length


def _riff_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4].decode("latin-1").strip().lower(), data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _decode_plain_png(data: bytes, layout: Any, max_pixels: int) -> np.ndarray:
    refuse_too_many(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), max_pixels)
    try:
        pixels: np.ndarray = spng.spng_decode_image_bytes(data, layout)
    except RuntimeError as error:
        raise BrokenImage(f"broken PNG: {str(error).removeprefix('pyspng: ')}") from None
    return pixels


def _decode_plain_jpeg(data: bytes, header: Header, spec: InputSpec) -> np.ndarray | None:
    """In the spec's colours. None of a file in other colours than grey, YCbCr and RGB, of one whose metadata may turn
    it, and of one that libjpeg does not find flawless."""
    if header.layers not in (1, 3) or any(mark in data[: header.metadata] for mark in _TURNING):
        return None
    scale = header.scale(spec)
    shape = -(-header.height // scale), -(-header.width // scale), spec.channels
    colours = "GRAY" if spec.channels == 1 else "RGB"
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, colours, min_height=shape[0], min_width=shape[1], min_factor=1
        )
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape == shape else None


def _decode_by_pillow(data: bytes, header: Header, spec: InputSpec, max_pixels: int) -> Image.Image:
    kind = header.kind
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            if image.width * image.height != header.pixels:  # limits were checked against the header
                raise BrokenImage(
                    f"broken {kind}: {image.width} × {image.height} pixels, but its header says "
                    f"{header.width} × {header.height}"
                )
            _require_convertible(image.mode)
            if kind == "JPEG":
                image.draft("L" if spec.channels == 1 else "RGB", needed_size(image.width, image.height, spec))
            image.load()
            if kind == "WEBP":  # frees two canvases and the frame
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
    except Exception as error:  # parsers raise nearly any exception on hostile bytes
        raise BrokenImage(f"broken {kind}: {error or type(error).__name__}") from error


def convert_colours(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Converts to L or RGB, as the manifest says: high byte of 16 bits, palette expanded, alpha over the background."""
    _require_convertible(image.mode)
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    return _by_tiles(image, mode, lambda tile: _convert_tile(tile, spec, mode))


def _require_convertible(mode: str) -> None:
    if mode not in _EIGHT_BIT_MODES and not mode.startswith("I;16"):
        raise NotAnImage(f"pixels of mode {mode} have no fixed range: send 8 or 16 bits of grey, RGB or CMYK")


def _convert_tile(image: Image.Image, spec: InputSpec, mode: str) -> Image.Image:
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
    """Applies `convert`, which treats each pixel independently, to large images tile by tile."""
    width, height = image.size
    if width * height <= _TILE * _TILE:
        return convert(image)
    result = Image.new(mode, image.size)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            box = (left, top, min(width, left + _TILE), min(height, top + _TILE))
            result.paste(convert(image.crop(box)), box[:2])
    return result


def _with_png_alpha(image: Image.Image, depth: int) -> Image.Image:
    """Scales the transparent colour, which Pillow leaves at the file's depth, to the depth of the pixels."""
    colour = image.info["transparency"]
    if image.mode.startswith("I;16"):
        # Upright first: the new image has no orientation.
        return _by_tiles(_upright(image), "LA", lambda tile: _with_deep_alpha(tile, colour))
    if image.mode in ("1", "L") and depth < 8:
        image.info["transparency"] = colour * (255 // (2**depth - 1))
    if image.mode == "RGB" and depth == 16:
        del image.info["transparency"]  # Pillow dropped the low bytes, so the colour is ambiguous
    return _upright(image)


def _with_deep_alpha(image: Image.Image, colour: int) -> Image.Image:
    opaque = (np.asarray(image) != colour).astype(np.uint8) * 255
    return Image.merge("LA", [Image.fromarray(_high_bytes(image)), Image.fromarray(opaque)])


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation. Scales the 12 bits of a TIFF, which Pillow leaves as they are, to 16."""
    turn = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    if image.mode == "I;16" and getattr(image, "tag_v2", {}).get(_BITS_TAG) == (12,):
        image = image.point(lambda level: level * 16)
    return image if turn is None else image.transpose(turn)


def _plain_png_layout(data: bytes) -> Any:
    """libspng's format for a PNG that has only IHDR, one IDAT and IEND, 8 bits, not interlaced; else None.

    libspng inflates compressed text chunks and ignores checksums, so it gets only files without such chunks whose
    checksums are right. Larger files have several IDATs; for those Pillow is as fast.
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
    """Pixels according to IHDR."""
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
