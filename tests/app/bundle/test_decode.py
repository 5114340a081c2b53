import struct
import zlib

import pytest

from app.bundle.decode import is_quick
from app.bundle.drawings import garment, golden_files
from app.bundle.encode import png


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


MAGIC = b"\x89PNG\r\n\x1a\n"
GOOD = png(garment("bag"))
FORGED = MAGIC + chunk(b"tEXt", struct.pack(">II", 1, 1)) + GOOD[8:]
LADEN = GOOD[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 1_000_000)) + GOOD[33:]


def test_a_small_plain_png_is_quick() -> None:
    assert is_quick(GOOD)


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
def test_what_may_cost_more_than_it_looks_is_not(data: bytes) -> None:
    assert not is_quick(data)
