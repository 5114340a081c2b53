"""A file's first bytes → its format, its size in pixels, and the cost of decoding it. Nothing is decoded or allocated.

    PNG    IHDR at a fixed place; `require_sound` walks the other chunks
    JPEG   segments up to the first scan
    GIF    extensions up to the first frame, which may be larger than the screen in the header
    WebP   the canvas, in the first chunk
    BMP    one header
    TIFF   the first directory: size, and strips or tiles, which may be larger than the image

Each walk is limited by the bytes it has passed, so a file with countless empty parts is refused early. `peak_bytes` and
`seconds` use the table COSTS, which `python -m benchmarks.decoding` measures.
"""

import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

from PIL.JpegImagePlugin import MARKER

from app.bundle.manifest import InputSpec
from app.bundle.tiles import scaled_size
from app.errors import BrokenImage, NotAnImage, TooManyPixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
PIXELS_CEILING = 89_478_485  # Pillow warns of decompression bombs above this; no setting exceeds it
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Cost(NamedTuple):
    pixel_bytes: float  # peak memory for each pixel in the header
    megapixel_s: float  # seconds for a million pixels


_SEVERAL_SCANS = "JPEG, several scans"  # of others libjpeg reads one

# Measured and rounded up. Includes conversion to RGB, alpha and EXIF orientation.
COSTS = {
    "PNG": Cost(9, 0.05),
    "JPEG": Cost(9, 0.03),  # of the pixels after scaling
    _SEVERAL_SCANS: Cost(9, 0.06),  # plus coefficients, which are kept at full size
    "WEBP": Cost(16.5, 0.06),
    "GIF": Cost(7, 0.05),
    "BMP": Cost(9, 0.03),
    "BMP, run-length": Cost(9, 0.3),  # Pillow decodes it in Python
    "TIFF": Cost(9, 0.06),  # plus one unpacked strip or tile
}
_TILED_BYTES = 9  # per pixel of a picture in tiles, which keeps its size: what becomes numpy's, twice, and resampling
_FIXED_BYTES = 4 << 20  # independent of size: metadata, tables, tiles of colour conversion
_STEP_S = 5e-6  # per chunk, segment or block: Pillow parses them in Python
_BYTE_S = 20e-9  # per byte of the file: inflating, entropy decoding
_METADATA_BYTE_S = 200e-9  # per byte before the pixels

_MOST_RUN_LENGTH_PIXELS = 1 << 22
_MOST_SCANS = 100  # progressive files have about ten
_MOST_INFLATED = 16  # compressed texts and profiles in a PNG, each up to a megabyte when inflated
_INFLATED_STEPS = 200  # the cost of one of them, in steps
_FEW_SEGMENTS = 64  # of a JPEG, which are always allowed
_MOST_JUNK = 4096  # bytes between a JPEG's segments
_MOST_TAGS, _MOST_VALUES = 512, 1 << 15  # tags in a TIFF's directory, and values of one tag, such as strips
_WALKED = 64 << 10  # bytes; chunks of larger PNGs are estimated, not counted, when the header is read


@dataclass(frozen=True, slots=True)
class Header:
    kind: str  # as in FORMATS
    width: int
    height: int
    cost: str  # in COSTS
    size: int  # bytes of the file
    steps: int = 1  # chunks, segments or blocks that the parser visits one by one
    metadata: int = 0  # bytes before the pixels
    block: int = 0  # bytes of a strip or tile, unpacked
    layers: int = 3

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def scale(self, spec: InputSpec) -> int:
        """1, 2, 4 or 8: how much Pillow's draft mode shrinks a JPEG and leaves two pixels for each one needed."""
        if self.kind != "JPEG":
            return 1
        wide, high = needed_size(self.width, self.height, spec)
        most = min(self.width // wide, self.height // high)
        return 8 if most >= 8 else 4 if most >= 4 else 2 if most >= 2 else 1

    def peak_bytes(self, spec: InputSpec) -> int:
        """Upper bound of memory while the file is decoded for the spec, including three copies of the file."""
        resampled = 64 * spec.height * spec.width  # the image between and after the two resampling passes
        if spec.tiles is not None:
            resampled = _TILED_BYTES * math.prod(scaled_size(self.width, self.height, spec))
        scale = self.scale(spec)
        decoded = -(-self.width // scale) * -(-self.height // scale) * COSTS[self.cost].pixel_bytes
        coefficients = 2 * self.layers * self.pixels if self.cost == _SEVERAL_SCANS else 0
        return int(decoded) + coefficients + self.block + 3 * self.size + resampled + _FIXED_BYTES

    def seconds(self, spec: InputSpec) -> float:
        cost = COSTS[self.cost]
        megapixels = self.pixels / 1e6
        if self.cost == "JPEG":
            megapixels /= self.scale(spec) ** 0.5
        parsed = self.steps * _STEP_S + self.metadata * _METADATA_BYTE_S
        return parsed + self.size * _BYTE_S + megapixels * cost.megapixel_s


def needed_size(width: int, height: int, spec: InputSpec) -> tuple[int, int]:
    """(width, height) to which libjpeg may reduce such a JPEG: twice what the spec needs, with tiles its own."""
    if spec.tiles is not None:
        return width, height
    side = 2 * max(spec.height, spec.width)
    return side, side


def sniff(data: bytes) -> str:
    """The format according to the first bytes. Declared types and file names are ignored."""
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
    raise NotAnImage(f"not an image in a format that Graft reads ({', '.join(FORMATS)}): it begins with {data[:8]!r}")


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


def require_memory(header: Header, spec: InputSpec, most: int) -> int:
    """The bytes that decoding takes; raises TooManyPixels if `most` could never hold them."""
    needed = header.peak_bytes(spec)
    if needed > most:
        raise TooManyPixels(
            f"{header.width} × {header.height} pixels of this {header.kind} take {needed:,} bytes to decode; "
            f"at most {most:,} are available (DECODE_MB): make it smaller, or save it in another format"
        )
    return needed


def require_sound(data: bytes, header: Header) -> None:
    """Refuses PNGs that are cut off and PNGs or JPEGs that take Pillow too long."""
    if header.kind == "PNG":
        _walk_png(data)
    elif header.cost == _SEVERAL_SCANS and data.count(b"\xff\xda") > _MOST_SCANS:
        raise BrokenImage(f"broken JPEG: more than {_MOST_SCANS} scans; each costs as much as a whole image")


def _bounded(kind: str, parts: str, steps: int, at: int, allowed: int, bytes_each: int) -> None:
    if steps > allowed + at // bytes_each:
        raise BrokenImage(
            f"broken {kind}: {steps:,} {parts} in its first {at:,} bytes; save the image again without them"
        )


# --- PNG ---------------------------------------------------------------------------------------------------------


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise BrokenImage("broken PNG: its header does not parse")
    steps = _walk_png(data) if len(data) <= _WALKED else len(data) // 512
    return Header("PNG", width=width, height=height, cost="PNG", size=len(data), steps=steps)


def _walk_png(data: bytes) -> int:
    """Cost of the chunks up to IEND, in steps."""
    at, steps, inflated = 8, 0, 0
    end, unpack = len(data), struct.Struct(">I4s").unpack_from
    while at + 12 <= end:
        length, name = unpack(data, at)
        if name == b"IEND":
            return steps + inflated * _INFLATED_STEPS
        steps += 1
        at += 12 + length
        _bounded("PNG", "chunks", steps=steps, at=at, allowed=256, bytes_each=512)
        if name in (b"zTXt", b"iTXt", b"iCCP"):
            inflated += 1
            if inflated > _MOST_INFLATED:
                raise BrokenImage(f"broken PNG: more than {_MOST_INFLATED} compressed texts and profiles")
    raise BrokenImage("broken PNG: the file ends before its IEND chunk")


# --- JPEG --------------------------------------------------------------------------------------------------------


# Of markers, their second byte: those that begin a frame, and those without a length.
_FRAMES = frozenset(code & 0xFF for code, (name, *_) in MARKER.items() if name.startswith("SOF"))
_BARE = frozenset({0x00, 0x01, *(code & 0xFF for code, (_, _, read) in MARKER.items() if read is None)})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_START_OF_SCAN = 0xDA


def _jpeg(data: bytes) -> Header:
    """Reads up to the first scan, as Pillow's parser does. libjpeg agrees with it or refuses the file."""
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
        code, at = data[marker + 1], marker + 2
        steps += 1
        if steps > _FEW_SEGMENTS:
            _bounded("JPEG", "segments", steps=steps, at=at, allowed=_FEW_SEGMENTS, bytes_each=256)
        if code in _BARE:
            continue
        if code in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            frame = width, height, data[at + 7]
            progressive = code in _PROGRESSIVE
        if code == _START_OF_SCAN:
            break
        at += max(2, data[at] << 8 | data[at + 1])
    if frame is None:
        raise IndexError
    width, height, layers = frame
    several_scans = progressive or data[at + 2] < layers
    cost = _SEVERAL_SCANS if several_scans else "JPEG"
    return Header(
        "JPEG", width=width, height=height, cost=cost, size=len(data), steps=steps, metadata=at, layers=layers
    )


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
                _bounded("GIF", "blocks", steps=steps, at=at, allowed=64, bytes_each=64)
            at += 1
        _bounded("GIF", "blocks", steps=steps, at=at, allowed=64, bytes_each=64)
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    return Header(
        "GIF",
        width=max(width, left + frame_width),
        height=max(height, top + frame_height),
        cost="GIF",
        size=len(data),
        steps=steps,
    )


# --- WebP --------------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> Header:
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 ":
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    else:
        raise IndexError
    return Header("WEBP", width=width, height=height, cost="WEBP", size=len(data))


# --- BMP ---------------------------------------------------------------------------------------------------------


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return Header("BMP", width=width, height=height, cost="BMP", size=len(data))
    width, height, _, bits, compression = struct.unpack_from("<IIHHI", data, 18)
    (colours,) = struct.unpack_from("<I", data, 46)
    if data[25] == 0xFF:  # rows from the top: the height is negative
        height = 2**32 - height
    if bits <= 8 and colours > 256:
        raise BrokenImage(f"broken BMP: {colours:,} colours of {bits} bits")
    return Header(
        "BMP", width=width, height=height, cost="BMP, run-length" if compression in (1, 2) else "BMP", size=len(data)
    )


# --- TIFF --------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _BITS, _SAMPLES, _ROWS, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 277, 278, 322, 323
_NUMBERS = {3: "H", 4: "I"}
_BYTES = (1, 2, 6, 7)  # types that Pillow keeps as bytes


def _tiff(data: bytes) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    if count > _MOST_TAGS:
        raise BrokenImage(f"broken TIFF: {count:,} tags; at most {_MOST_TAGS} are read")
    tags: dict[int, tuple[int, int, int]] = {}
    for index in range(count):
        at = first + 2 + 12 * index
        tag, kind, values = struct.unpack_from(order + "HHI", data, at)
        if kind not in _BYTES and values > _MOST_VALUES:
            raise BrokenImage(f"broken TIFF: tag {tag} has {values:,} values; at most {_MOST_VALUES:,} are read")
        tags[tag] = kind, values, at + 8

    def numbers(tag: int) -> tuple[int, ...]:
        if tag not in tags:
            return ()
        kind, values, at = tags[tag]
        letter = _NUMBERS.get(kind)
        if letter is None:
            return ()
        values = min(values, 16)
        if values * struct.calcsize(letter) > 4:
            (at,) = struct.unpack_from(order + "I", data, at)
        return struct.unpack_from(f"{order}{values}{letter}", data, at)

    def number(tag: int, default: int) -> int:
        return (numbers(tag) or (default,))[0]

    width, height = number(_WIDTH, 0), number(_HEIGHT, 0)
    bits = numbers(_BITS) or (1,)
    samples = max(number(_SAMPLES, 1), len(bits))
    block_width = number(_TILE_WIDTH, width)
    block_height = number(_TILE_HEIGHT, min(number(_ROWS, height), height))
    block = block_width * block_height * samples * max(bits) // 8
    return Header("TIFF", width=width, height=height, cost="TIFF", size=len(data), steps=count, block=block)


_READERS = {"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "WEBP": _webp, "BMP": _bmp, "TIFF": _tiff}
