import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import DRAWN
from PIL import Image
from support import spec

from app.bundle.decode import decode, decode_if_quick, read_dimensions
from app.bundle.drawings import garment, golden_files
from app.bundle.encode import png
from app.errors import ImageError


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


MAGIC = b"\x89PNG\r\n\x1a\n"
GOOD = png(garment("bag"))
FORGED = MAGIC + chunk(b"tEXt", struct.pack(">II", 1, 1)) + GOOD[8:]
LADEN = GOOD[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 1_000_000)) + GOOD[33:]


def test_a_small_plain_png_is_quick() -> None:
    assert np.array_equal(decode_if_quick(GOOD), decode(GOOD, spec()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        FORGED,
        LADEN,
        png(garment("bag").resize((200, 200))),
        GOOD[:20],
        *(data for data in golden_files() if not data.startswith(MAGIC)),
    ],
)
def test_files_that_may_cost_more_than_they_seem_are_not_quick(data: bytes) -> None:
    assert decode_if_quick(data) is None


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (max(2, height // 7), max(2, width // 7), 4), np.uint8)
    image = Image.fromarray(coarse[..., :3]).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, **options)
    return file.getvalue()


def by_pillow(data: bytes, side: int, channels: int) -> np.ndarray:
    mode = "L" if channels == 1 else "RGB"
    with Image.open(io.BytesIO(data)) as image:
        image.draft(mode, (2 * side, 2 * side))
        return np.asarray(image.convert(mode)).reshape(image.height, image.width, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_plain_jpegs_are_decoded_to_the_pixels_that_pillow_gives(
    mode: str, subsampling: int, progressive: bool, channels: int
) -> None:
    for width, height in (64, 64), (65, 63), (17, 333), (501, 499), (1000, 700):
        data = jpeg(width, height, mode, subsampling=subsampling, progressive=progressive)
        for side in 28, 120:
            pixels = decode(data, spec(side, side, channels))
            assert isinstance(pixels, np.ndarray)
            assert np.array_equal(pixels, by_pillow(data, side, channels)), (width, height, side)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(60, 40, exif=exif)


FLAWED = jpeg(80, 80)[:-60] + b"\xff\xd9"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_turned(), id="turned"),
        pytest.param(jpeg(60, 40, xmp=b'<x tiff:Orientation="6"/>'), id="turned by XMP"),
        pytest.param(jpeg(60, 40, "CMYK"), id="CMYK"),
        pytest.param(FLAWED, id="flawed"),
    ],
)
def test_pillow_decodes_jpegs_that_are_not_plain(data: bytes) -> None:
    assert isinstance(decode(data, spec(28, 28, 3)), Image.Image)


@pytest.mark.parametrize("name", DRAWN)
def test_dimensions_are_those_of_the_decoded_image(name: str, tmp_path: Path) -> None:
    """The images that say so are turned by a quarter."""
    data = DRAWN[name](37, 53)
    (tmp_path / "image").write_bytes(data)
    found = read_dimensions(tmp_path / "image")
    image = decode(data, spec(200, 200, 3))
    assert (found.width, found.height) == (image.size if isinstance(image, Image.Image) else image.shape[1::-1])
    if found.grey:
        assert not isinstance(image, Image.Image) or image.mode in ("1", "L", "LA", "I;16")
        assert isinstance(image, Image.Image) or image.shape[2] == 1
    assert found.grey or name not in ("PNG 8-bit grey", "PNG 16-bit grey", "PNG grey and alpha", "JPEG grey")


def test_dimensions_are_read_without_the_pixels(tmp_path: Path) -> None:
    """A PNG whose pixels are missing; Pillow looks for an orientation behind them."""
    (tmp_path / "cut.png").write_bytes(png(garment("bag", 61))[:60])
    assert read_dimensions(tmp_path / "cut.png") == (61, 61, True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        GOOD[:20],
        b"\xff\xd8\xff\xe0",
        b"BM" + bytes(60),
        b"II*\0" + b"\xff" * 20,
        MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b"") + GOOD[-12:],
        MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", 10000, 10000, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b"") + GOOD[-12:],
    ],
)
def test_dimensions_that_cannot_be_read_or_are_too_large_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ImageError):
        read_dimensions(tmp_path / "image")
