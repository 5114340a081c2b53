"""Pictures that cost the most for the fewest bytes: every format and mode that is decoded, in any size, of one colour.

    DRAWN[name](width, height) → the file

and files of countless empty parts, in `laden`.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

Draw = Callable[[int, int], bytes]
TURNED = 6  # an orientation for which the picture is copied


def exif() -> bytes:
    made = Image.Exif()
    made[0x0112] = TURNED
    return made.tobytes()


# --- PNG, written here: Pillow writes no 16-bit colours and does not interlace ------------------------------------

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, *, alpha: bool = False, interlaced: bool = False) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    parts = [chunk(b"IHDR", head), chunk(b"eXIf", exif().removeprefix(b"Exif\0\0"))]
    if colour == 3:
        parts.append(chunk(b"PLTE", bytes(range(48)) if depth < 8 else bytes(range(256)) * 3))
    if alpha:
        parts.append(chunk(b"tRNS", {0: b"\0\0", 2: bytes(6), 3: b"\0" * 8}[colour]))
    packer = zlib.compressobj(9)
    packed = []
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        wide, high = -(-(width - left) // across), -(-(height - top) // down)
        row = bytes(1 + (wide * depth * _SAMPLES[colour] + 7) // 8)
        if wide > 0:
            packed += [packer.compress(row) for _ in range(high)]
    parts += [chunk(b"IDAT", b"".join(packed) + packer.flush()), chunk(b"IEND")]
    return PNG_MAGIC + b"".join(parts)


# --- the others, written by Pillow ---------------------------------------------------------------------------------


def saved(kind: str, mode: str, width: int, height: int, **options: object) -> bytes:
    image = Image.new(mode, (width, height), 0)
    if mode in ("P", "PA"):
        image.putpalette(bytes(range(256)) * 3)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _by_pillow(kind: str, mode: str, **options: object) -> Draw:
    return lambda width, height: saved(kind, mode, width, height, **options)


def _animated(width: int, height: int) -> bytes:
    file = io.BytesIO()
    first, second = Image.new("RGBA", (width, height)), Image.new("RGBA", (width, height), "red")
    first.save(file, "WEBP", save_all=True, append_images=[second], lossless=True, duration=100)
    return file.getvalue()


def bmp_run_length(width: int, height: int) -> bytes:
    """Rows that end before they have begun: each is filled up pixel by pixel."""
    palette = bytes(range(256)) * 4
    pixels = (b"\x01\x05\x00\x00" * height) + b"\x00\x01"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return (
        b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(pixels), 0, 0, 54 + len(palette)) + head + palette + pixels
    )


def tiff(width: int, height: int, *, tile: tuple[int, int] | None = None, samples: int = 4, depth: int = 16) -> bytes:
    """Deflated, in one strip or in tiles, which may be larger than the picture."""
    across, down = tile or (width, height)
    packer = zlib.compressobj(9)
    row = bytes(across * samples * depth // 8)
    strip = b"".join(packer.compress(row) for _ in range(down)) + packer.flush()
    bits = struct.pack(f"<{samples}H", *[depth] * samples)
    at_bits, at_strip = 8, 8 + len(bits)
    first = at_strip + len(strip) + len(strip) % 2
    photometric = 2 if samples >= 3 else 1
    tags = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 8), (262, 3, 1, photometric), (274, 3, 1, TURNED)]
    tags.append((258, 3, samples, at_bits) if samples > 2 else (258, 3, 1, depth))
    tags += [(277, 3, 1, samples), (284, 3, 1, 1)]
    if tile:
        tags += [(322, 4, 1, across), (323, 4, 1, down), (324, 4, 1, at_strip), (325, 4, 1, len(strip))]
    else:
        tags += [(273, 4, 1, at_strip), (278, 4, 1, height), (279, 4, 1, len(strip))]
    if samples == 4:
        tags.append((338, 3, 1, 2))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    body = (b"II*\0" + struct.pack("<I", first) + bits + strip).ljust(first, b"\0")
    return body + struct.pack("<H", len(tags)) + entries + bytes(4)


DRAWN: dict[str, Draw] = {
    "PNG 1-bit grey": lambda w, h: png(w, h, 1, 0),
    "PNG 2-bit grey, a colour transparent": lambda w, h: png(w, h, 2, 0, alpha=True),
    "PNG 8-bit grey": lambda w, h: png(w, h, 8, 0),
    "PNG 16-bit grey": lambda w, h: png(w, h, 16, 0),
    "PNG 16-bit grey, a colour transparent": lambda w, h: png(w, h, 16, 0, alpha=True),
    "PNG 16-bit grey, interlaced": lambda w, h: png(w, h, 16, 0, interlaced=True),
    "PNG RGB": lambda w, h: png(w, h, 8, 2),
    "PNG RGB, a colour transparent": lambda w, h: png(w, h, 8, 2, alpha=True),
    "PNG 16-bit RGB": lambda w, h: png(w, h, 16, 2),
    "PNG palette of 16": lambda w, h: png(w, h, 4, 3),
    "PNG palette, transparent": lambda w, h: png(w, h, 8, 3, alpha=True),
    "PNG grey and alpha": lambda w, h: png(w, h, 8, 4),
    "PNG 16-bit grey and alpha": lambda w, h: png(w, h, 16, 4),
    "PNG RGBA": lambda w, h: png(w, h, 8, 6),
    "PNG RGBA, interlaced": lambda w, h: png(w, h, 8, 6, interlaced=True),
    "PNG 16-bit RGBA": lambda w, h: png(w, h, 16, 6),
    "JPEG grey": _by_pillow("JPEG", "L", exif=exif()),
    "JPEG RGB": _by_pillow("JPEG", "RGB", exif=exif()),
    "JPEG RGB, full chroma": _by_pillow("JPEG", "RGB", subsampling=0, exif=exif()),
    "JPEG CMYK": _by_pillow("JPEG", "CMYK", exif=exif()),
    "JPEG RGB, progressive": _by_pillow("JPEG", "RGB", progressive=True, subsampling=0, exif=exif()),
    "JPEG CMYK, progressive": _by_pillow("JPEG", "CMYK", progressive=True, subsampling=0, exif=exif()),
    "WebP RGB": _by_pillow("WEBP", "RGB", exif=exif()),
    "WebP RGBA": _by_pillow("WEBP", "RGBA", exif=exif()),
    "WebP RGB, lossless": _by_pillow("WEBP", "RGB", lossless=True),
    "WebP RGBA, lossless": _by_pillow("WEBP", "RGBA", lossless=True, exif=exif()),
    "WebP, animated": _animated,
    "GIF": _by_pillow("GIF", "P"),
    "GIF, transparent": _by_pillow("GIF", "P", transparency=0),
    "GIF, interlaced": _by_pillow("GIF", "L", interlace=1),
    "BMP 1-bit": _by_pillow("BMP", "1"),
    "BMP palette": _by_pillow("BMP", "P"),
    "BMP RGB": _by_pillow("BMP", "RGB"),
    "BMP RGBA": _by_pillow("BMP", "RGBA"),
    "BMP run-length": bmp_run_length,
    "TIFF 1-bit, group 4": _by_pillow("TIFF", "1", compression="group4"),
    "TIFF grey, raw": _by_pillow("TIFF", "L"),
    "TIFF grey and alpha, LZW": _by_pillow("TIFF", "LA", compression="tiff_lzw", tiffinfo={274: TURNED}),
    "TIFF palette, packed bits": _by_pillow("TIFF", "P", compression="packbits"),
    "TIFF RGB, LZW": _by_pillow("TIFF", "RGB", compression="tiff_lzw", tiffinfo={274: TURNED}),
    "TIFF RGB, JPEG": _by_pillow("TIFF", "RGB", compression="jpeg"),
    "TIFF YCbCr, JPEG": _by_pillow("TIFF", "YCbCr", compression="jpeg", tiffinfo={274: TURNED}),
    "TIFF RGBA, deflated": _by_pillow("TIFF", "RGBA", compression="tiff_adobe_deflate", tiffinfo={274: TURNED}),
    "TIFF CMYK, LZW": _by_pillow("TIFF", "CMYK", compression="tiff_lzw", tiffinfo={274: TURNED}),
    "TIFF 16-bit grey, deflated": lambda w, h: tiff(w, h, samples=1),
    "TIFF 16-bit RGBA, deflated": lambda w, h: tiff(w, h, samples=4),
    "TIFF 16-bit RGBA, one tile": lambda w, h: tiff(w, h, tile=(-(-w // 16) * 16, -(-h // 16) * 16)),
}


def laden(size: int) -> list[tuple[str, bytes]]:
    """(name, file of about `size` bytes): nearly all of each are parts that say nothing."""
    return list(_laden(size))


def _laden(size: int) -> Iterator[tuple[str, bytes]]:
    small, head = png(8, 8, 8, 0), 8 + 25
    gif, jpeg = saved("GIF", "P", 8, 8), saved("JPEG", "RGB", 8, 8)
    first = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 128 else 0)
    yield "PNG chunks", small[:head] + chunk(b"teSt") * (size // 12) + small[head:]
    yield "PNG data in empty chunks", small[:-12] + chunk(b"IDAT") * (size // 12) + small[-12:]
    inflated = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20), 9))
    yield "PNG compressed texts", small[:head] + inflated * (size // len(inflated)) + small[head:]
    yield "JPEG segments", jpeg[:2] + b"\xff\xfe\x00\x02" * (size // 4) + jpeg[2:]
    yield "JPEG restarts", jpeg[:2] + b"\xff\xd0" * (size // 2) + jpeg[2:]
    yield "JPEG fill", jpeg[:2] + b"\xff" * size + jpeg[2:]
    yield "JPEG junk", jpeg[:2] + b"\x00" * size + jpeg[2:]
    yield "GIF extensions", gif[:first] + b"\x21\xfe\x01a\x00" * (size // 5) + gif[first:]
    yield "GIF blocks", gif[:first] + b"\x21\xfe" + b"\x01a" * (size // 2) + b"\x00" + gif[first:]
    yield "GIF junk", gif[:first] + b"\x00" * size + gif[first:]
    many = min(65535, size // 12)
    tags = b"".join(struct.pack("<HHII", 40000 + n % 20000, 3, 1, 0) for n in range(many))
    yield "TIFF tags", b"II*\0" + struct.pack("<IH", 8, many) + tags + bytes(4)
    strips = struct.pack("<HHII", 256, 4, 1, 1) + struct.pack("<HHII", 257, 4, 1, size // 4)
    strips += struct.pack("<HHII", 262, 3, 1, 1) + struct.pack("<HHII", 273, 4, size // 4, 8 + 2 + 12 * 5 + 4)
    strips += struct.pack("<HHII", 278, 4, 1, 1)
    yield "TIFF strips", b"II*\0" + struct.pack("<IH", 8, 5) + strips + bytes(4) + bytes(size)
    bmp = bytearray(saved("BMP", "P", 8, 8))
    bmp[46:50] = struct.pack("<I", 65536)
    yield "BMP colours", bytes(bmp)
