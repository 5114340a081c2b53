"""A file's first bytes → its format, size in pixels, and what decoding will cost. Nothing is decoded or reserved here.

    PNG    IHDR at a fixed place; the other chunks are walked by `require_sound`
    JPEG   segments up to the first scan
    GIF    extensions up to the first frame, which may be larger than the screen that the file claims
    WebP   the canvas, in the first chunk
    BMP    one header
    TIFF   the first directory: size, and the strips or tiles, which may be larger than the picture

Each walk is bounded by the bytes it passes: a file of countless empty parts is refused, not read to its end.
`peak_bytes` and `seconds` come from the table, which `python -m benchmarks.decoding` measures.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from PIL.JpegImagePlugin import MARKER

from app.bundle.manifest import InputSpec
from app.errors import BrokenImage, NotAnImage, TooManyPixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
PIXELS_CEILING = 89_478_485  # above it Pillow raises an alarm of its own; no setting goes beyond
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Cost(NamedTuple):
    pixel_bytes: float  # at the worst moment, for each pixel that the header claims
    megapixel_s: float  # seconds for a million of them


# Measured, and rounded up. Colours converted to RGB, alpha composited and EXIF orientation applied included.
COSTS = {
    "PNG": Cost(9, 0.05),
    "JPEG": Cost(9, 0.03),  # of the pixels at the scale it is decoded at
    "JPEG, several scans": Cost(9, 0.06),  # beside its coefficients, which are kept in full size
    "WEBP": Cost(16.5, 0.06),
    "GIF": Cost(7, 0.05),
    "BMP": Cost(9, 0.03),
    "BMP, run-length": Cost(9, 0.3),  # by a loop in Python
    "TIFF": Cost(9, 0.06),  # beside a strip or tile as it is unpacked
}
_FIXED_BYTES = 4 << 20  # whatever the size: metadata, tables, the bands that colours are converted in
_STEP_S = 5e-6  # one chunk, segment or block in Pillow's parsers, which are Python
_BYTE_S = 20e-9  # of a file: inflating, entropy decoding
_METADATA_BYTE_S = 200e-9  # of what stands before the pixels

_MOST_RUN_LENGTH_PIXELS = 1 << 22
_MOST_SCANS = 100  # progressive files have some ten
_MOST_INFLATED = 16  # compressed text and profiles in a PNG, each of up to a megabyte when it is inflated
_INFLATED_STEPS = 200  # that one of them is worth
_MOST_JUNK = 4096  # bytes between a JPEG's segments
_MOST_TAGS, _MOST_VALUES = 512, 1 << 15  # of a TIFF's directory, and of one of its tags: strips, say
_WALKED = 64 << 10  # bytes of a PNG up to which its chunks are counted when its header is read


@dataclass(frozen=True, slots=True)
class Header:
    kind: str  # as in FORMATS
    width: int
    height: int
    cost: str  # in COSTS
    size: int  # bytes of the file
    steps: int = 1  # parts of the file that its parser goes through one by one
    metadata: int = 0  # bytes before the pixels
    block: int = 0  # bytes of a strip or tile, unpacked
    layers: int = 3

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def scale(self, spec: InputSpec) -> int:
        """The largest at which a JPEG leaves two pixels for each one needed: 1, 2, 4 or 8, as Pillow's draft has it."""
        if self.kind != "JPEG":
            return 1
        side = 2 * max(spec.height, spec.width)
        return next(scale for scale in (8, 4, 2, 1) if scale == 1 or min(self.width, self.height) // side >= scale)

    def peak_bytes(self, spec: InputSpec) -> int:
        """At most so many bytes are taken while it is decoded for the spec, its own three times included."""
        drawn = 64 * spec.height * spec.width  # of the picture between its two passes of resampling, and after them
        scale = self.scale(spec)
        decoded = -(-self.width // scale) * -(-self.height // scale) * COSTS[self.cost].pixel_bytes
        coefficients = 2 * self.layers * self.pixels if self.cost == "JPEG, several scans" else 0
        return int(decoded) + coefficients + self.block + 3 * self.size + drawn + _FIXED_BYTES

    def seconds(self, spec: InputSpec) -> float:
        cost = COSTS[self.cost]
        megapixels = self.pixels / 1e6
        if self.cost == "JPEG":
            megapixels /= self.scale(spec) ** 0.5
        parsed = self.steps * _STEP_S + self.metadata * _METADATA_BYTE_S
        return parsed + self.size * _BYTE_S + megapixels * cost.megapixel_s


def sniff(data: bytes) -> str:
    """The format by its first bytes; a declared type or a file name is never asked."""
    if data.startswith(PNG_MAGIC):
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


def read_header(data: bytes, max_pixels: int = PIXELS_CEILING) -> Header:
    kind = sniff(data)
    try:
        header = _READERS[kind](data)
    except (IndexError, struct.error):
        raise BrokenImage(f"broken {kind}: its header does not parse") from None
    refuse_too_many(header.width, header.height, max_pixels)
    if header.cost == "BMP, run-length" and header.pixels > _MOST_RUN_LENGTH_PIXELS:
        raise TooManyPixels(
            f"{header.width} × {header.height} = {header.pixels:,} pixels; a run-length encoded BMP may have "
            f"{_MOST_RUN_LENGTH_PIXELS:,}: save it uncompressed, or as PNG"
        )
    return header


def refuse_too_many(width: int, height: int, max_pixels: int) -> None:
    allowed = min(max_pixels, PIXELS_CEILING)
    if width * height > allowed:
        raise TooManyPixels(f"{width} × {height} = {width * height:,} pixels; at most {allowed:,} are allowed")


def require_sound(data: bytes, header: Header) -> None:
    """Refuses what Pillow would go through at length, or take although its tail is lost."""
    if header.kind == "PNG":
        _walk_png(data)
    elif header.kind == "JPEG" and data.count(b"\xff\xda") > _MOST_SCANS:
        raise BrokenImage(f"broken JPEG: more than {_MOST_SCANS} scans; each costs as much as a whole picture")


def _bounded(kind: str, parts: str, steps: int, at: int, allowed: int, bytes_each: int) -> None:
    if steps > allowed + at // bytes_each:
        raise BrokenImage(f"broken {kind}: {steps:,} {parts} in its first {at:,} bytes; a picture has no use for them")


# --- PNG ---------------------------------------------------------------------------------------------------------


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise BrokenImage("broken PNG: its header does not parse")
    steps = _walk_png(data) if len(data) <= _WALKED else len(data) // 512
    return Header("PNG", width, height, "PNG", len(data), steps)


def _walk_png(data: bytes) -> int:
    """Chunks up to IEND, as steps."""
    at, steps, inflated = 8, 0, 0
    end, unpack = len(data), struct.Struct(">I4s").unpack_from
    while at + 12 <= end:
        length, name = unpack(data, at)
        if name == b"IEND":
            return steps + inflated * _INFLATED_STEPS
        steps += 1
        at += 12 + length
        _bounded("PNG", "chunks", steps, at, 256, 512)
        if name in (b"zTXt", b"iTXt", b"iCCP"):
            inflated += 1
            if inflated > _MOST_INFLATED:
                raise BrokenImage(f"broken PNG: more than {_MOST_INFLATED} compressed texts and profiles")
    raise BrokenImage("broken PNG: the file ends before its IEND chunk")


# --- JPEG --------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> Header:
    """Up to the first scan, by the rules of Pillow's parser, which libjpeg's agree with or refuse the file."""
    at, steps, junk, frame = 2, 0, 0, None
    progressive = False
    while True:
        marker = data.find(b"\xff", at)
        if marker < 0:
            raise IndexError
        junk += marker - at
        while data[marker + 1] == 0xFF and junk <= _MOST_JUNK:
            marker, junk = marker + 1, junk + 1
        if junk > _MOST_JUNK:
            raise BrokenImage(f"broken JPEG: more than {_MOST_JUNK:,} bytes between its segments")
        code, at = 0xFF00 | data[marker + 1], marker + 2
        steps += 1
        _bounded("JPEG", "segments", steps, at, 64, 256)
        if code in (0xFF00, 0xFF01) or (code in MARKER and MARKER[code][2] is None):
            continue  # has no length
        length = int.from_bytes(data[at : at + 2])
        if MARKER.get(code, ("",))[0].startswith("SOF"):
            height, width = struct.unpack_from(">HH", data, at + 3)
            frame = width, height, data[at + 7]
            progressive = code in (0xFFC2, 0xFFC6, 0xFFCA, 0xFFCE)
        if code == 0xFFDA:
            break
        at += max(2, length)
    if frame is None:
        raise IndexError
    width, height, layers = frame
    several = progressive or data[at + 2] < layers
    cost = "JPEG, several scans" if several else "JPEG"
    return Header("JPEG", width, height, cost, len(data), steps, metadata=at, layers=layers)


# --- GIF ---------------------------------------------------------------------------------------------------------


def _gif(data: bytes) -> Header:
    width, height = struct.unpack_from("<HH", data, 6)
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    steps = 0
    while (block := data[at]) != 0x2C:
        steps += 1
        at += 1
        if block == 0x3B:
            raise IndexError
        if block == 0x21:
            at += 1
            while data[at]:
                at += 1 + data[at]
                steps += 1
                _bounded("GIF", "blocks", steps, at, 64, 64)
            at += 1
        _bounded("GIF", "blocks", steps, at, 64, 64)
    left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
    return Header("GIF", max(width, left + wide), max(height, top + high), "GIF", len(data), steps)


# --- WebP --------------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> Header:
    form = data[12:16]
    if form == b"VP8X":
        width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif form == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif form == b"VP8 ":
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    else:
        raise IndexError
    return Header("WEBP", width, height, "WEBP", len(data))


# --- BMP ---------------------------------------------------------------------------------------------------------


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return Header("BMP", width, height, "BMP", len(data))
    width, height, _, bits, compression = struct.unpack_from("<IIHHI", data, 18)
    (colours,) = struct.unpack_from("<I", data, 46)
    if data[25] == 0xFF:  # rows from the top: the height is negative
        height = 2**32 - height
    if bits <= 8 and colours > 256:
        raise BrokenImage(f"broken BMP: {colours:,} colours of {bits} bits")
    return Header("BMP", width, height, "BMP, run-length" if compression in (1, 2) else "BMP", len(data))


# --- TIFF --------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _BITS, _SAMPLES, _ROWS, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 277, 278, 322, 323
_NUMBERS = {3: "H", 4: "I"}
_BYTES = (1, 2, 6, 7)  # types whose values Pillow keeps as they are


def _tiff(data: bytes) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    if count > _MOST_TAGS:
        raise BrokenImage(f"broken TIFF: {count:,} tags; at most {_MOST_TAGS} are read")
    found: dict[int, tuple[int, int, int]] = {}
    for index in range(count):
        at = first + 2 + 12 * index
        tag, kind, values = struct.unpack_from(order + "HHI", data, at)
        if kind not in _BYTES and values > _MOST_VALUES:
            raise BrokenImage(f"broken TIFF: tag {tag} has {values:,} values; at most {_MOST_VALUES:,} are read")
        found[tag] = kind, values, at + 8

    def numbers(tag: int) -> tuple[int, ...]:
        if tag not in found:
            return ()
        kind, values, at = found[tag]
        letter = _NUMBERS.get(kind)
        if letter is None:
            return ()
        values = min(values, 16)
        if values * struct.calcsize(letter) > 4:
            (at,) = struct.unpack_from(order + "I", data, at)
        return struct.unpack_from(f"{order}{values}{letter}", data, at)

    def number(tag: int, otherwise: int) -> int:
        return (numbers(tag) or (otherwise,))[0]

    width, height = number(_WIDTH, 0), number(_HEIGHT, 0)
    bits = numbers(_BITS) or (1,)
    samples = max(number(_SAMPLES, 1), len(bits))
    across = number(_TILE_WIDTH, width)
    down = number(_TILE_HEIGHT, min(number(_ROWS, height), height))
    block = across * down * samples * max(bits) // 8
    return Header("TIFF", width, height, "TIFF", len(data), count, block=block)


_READERS = {"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "WEBP": _webp, "BMP": _bmp, "TIFF": _tiff}
