"""Encoded bytes → a picture in grey or RGB, eight bits a sample. The only importer of an image library.

libspng answers the plain PNG that most clients send, several times as fast as Pillow; Pillow answers
everything else. docs/decisions/0002 has the measurement. Both give the same pixels of a whole file: a test says so.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pyspng import _pyspng_c as spng

from app.bundle.manifest import InputSpec
from app.errors import BrokenImage, NotAnImage, TooManyPixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
PIXELS_CEILING = 89_478_485  # above it Pillow raises an alarm of its own; no setting goes beyond

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

_MOST_SCANS = 100  # progressive files have some ten
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_QUICK_BYTES, _QUICK_PIXELS = 64 << 10, 1 << 14
_SPNG_PIXELS = 1 << 20  # above it libspng, which never lets go of Python, would be noticed by everybody else
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# By depth, colour type, compression, filter and interlacing, as IHDR has them: 8-bit grey, 8-bit RGB.
_SPNG_LAYOUTS = {b"\x08\x00\x00\x00\x00": spng.SPNG_FMT_G8, b"\x08\x02\x00\x00\x00": spng.SPNG_FMT_RGB8}


def sniff(data: bytes) -> str:
    """The format by its first bytes; a declared type or a file name is never asked."""
    if data.startswith(_PNG_MAGIC):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\x00", b"MM\x00*")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if not data:
        raise NotAnImage("the image is empty: zero bytes")
    raise NotAnImage(f"not an image that Graft reads ({', '.join(FORMATS)}): it begins with {data[:8]!r}")


def decode_if_quick(data: bytes, max_pixels: int = PIXELS_CEILING) -> np.ndarray | None:
    """As `decode`, where that surely takes microseconds: a plain PNG of few bytes and few pixels, and nothing else."""
    if len(data) > _QUICK_BYTES or not data.startswith(_PNG_MAGIC) or _png_pixels(data) > _QUICK_PIXELS:
        return None
    layout = _plain_png_layout(data)
    return None if layout is None else _decode_plain_png(data, layout, max_pixels)


def decode(data: bytes, spec: InputSpec, max_pixels: int = PIXELS_CEILING) -> np.ndarray | Image.Image:
    """The upright picture in the file's own size and colours; an array (H, W, 1 or 3) where libspng made it."""
    kind = sniff(data)
    match kind:
        case "PNG":
            layout = _plain_png_layout(data)
            if layout is not None and _png_pixels(data) <= _SPNG_PIXELS:
                return _decode_plain_png(data, layout, max_pixels)
            _require_png_end(data)
        case "JPEG" if data.count(b"\xff\xda") > _MOST_SCANS:
            raise BrokenImage(f"broken JPEG: more than {_MOST_SCANS} scans; each costs as much as a whole picture")
        case "WEBP":
            _refuse_large_webp(data, max_pixels)  # Pillow reserves the canvas as soon as it opens one
    return _decode_by_pillow(data, kind, spec, max_pixels)


def _decode_plain_png(data: bytes, layout: Any, max_pixels: int) -> np.ndarray:
    width, height = struct.unpack(">II", data[16:24])
    _refuse_too_many(width, height, max_pixels)
    try:
        pixels: np.ndarray = spng.spng_decode_image_bytes(data, layout)
    except RuntimeError as error:
        raise BrokenImage(f"broken PNG: {str(error).removeprefix('pyspng: ')}") from None
    return pixels


def _decode_by_pillow(data: bytes, kind: str, spec: InputSpec, max_pixels: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _refuse_too_many(*image.size, max_pixels)
            if kind == "JPEG":
                side = 2 * max(spec.height, spec.width)
                image.draft("L" if spec.channels == 1 else "RGB", (side, side))
            image.load()
            if kind == "PNG" and "transparency" in image.info:
                return _with_png_alpha(image, depth=data[24])
            return _upright(image)
    except TooManyPixels:
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
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _EIGHT_BIT_MODES:
        raise NotAnImage(f"pixels of mode {image.mode} have no agreed range: send 8 or 16 bits of grey, RGB or CMYK")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, _BACKGROUNDS[spec.background])
        image.alpha_composite(rgba)
    mode = "L" if spec.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _with_png_alpha(image: Image.Image, depth: int) -> Image.Image:
    """The transparent colour brought to the depth of Pillow's pixels: it leaves that in the file's own."""
    colour = image.info["transparency"]
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        opaque = (deep != colour).astype(np.uint8) * 255
        return _upright(Image.merge("LA", [Image.fromarray((deep >> 8).astype(np.uint8)), Image.fromarray(opaque)]))
    if image.mode in ("1", "L") and depth < 8:
        image.info["transparency"] = colour * (255 // (2**depth - 1))
    if image.mode == "RGB" and depth == 16:
        del image.info["transparency"]  # the low bytes that tell it from its neighbours are gone
    return _upright(image)


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


def _require_png_end(data: bytes) -> None:
    """Pillow stops at the last row and would take a file that lost its tail."""
    at = 8
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4])
    raise BrokenImage("broken PNG: the file ends before its IEND chunk")


def _refuse_large_webp(data: bytes, max_pixels: int) -> None:
    form = data[12:16]
    if form == b"VP8X":
        width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif form == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    _refuse_too_many(width, height, max_pixels)


def _refuse_too_many(width: int, height: int, max_pixels: int) -> None:
    allowed = min(max_pixels, PIXELS_CEILING)
    if width * height > allowed:
        raise TooManyPixels(f"{width} × {height} = {width * height:,} pixels; at most {allowed:,} are allowed")
