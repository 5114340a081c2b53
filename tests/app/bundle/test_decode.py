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
