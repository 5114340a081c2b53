import struct
import zlib

import numpy as np
import pytest
from support import spec

from app.bundle.decode import decode, decode_if_quick
from app.bundle.drawings import garment, golden_files
from app.bundle.encode import png


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
