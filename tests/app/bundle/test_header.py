"""Headers agree with the decoded images, decoding stays within its reservation, and empty parts are refused early."""

import io
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hostile import DRAWN, PNG_MAGIC, bmp_run_length, chunk, exif, laden, png, saved, tiff
from PIL import Image
from support import PACKAGE_PARENT, ROOT, environment, spec

from app.bundle.decode import convert_colours, decode
from app.bundle.header import COSTS, read_header
from app.bundle.manifest import InputSpec
from app.bundle.preprocess import preprocess
from app.errors import BrokenImage, ImageError, TooManyPixels


@pytest.mark.parametrize("name", DRAWN)
def test_a_header_is_read_as_pillow_reads_it(name: str) -> None:
    data = DRAWN[name](37, 53)
    header = read_header(data)
    with Image.open(io.BytesIO(data)) as image:
        assert (header.kind, header.pixels) == (image.format, 37 * 53)
        assert {header.width, header.height} == set(image.size)
    assert header.cost in COSTS


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak")
def test_decoding_takes_no_more_memory_than_is_reserved() -> None:
    """In a separate process, because its peak counts nothing else."""
    command = [sys.executable, "-m", "benchmarks.decoding", "--json", "--side", "1200"]
    path = {"PYTHONPATH": f"{PACKAGE_PARENT}:{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment() | path, capture_output=True, text=True, check=True)
    found = {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert set(found) == set(DRAWN)
    assert not {name: each for name, each in found.items() if not 0 < each["pixel_bytes"] <= each["reserved"]}


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I;16")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_colours_are_the_same_by_tiles_and_as_a_whole(mode: str, channels: int) -> None:
    image, shape = _noise(mode, 1100, 700), spec(8, 8, channels, background="white")
    expected = _at_once(image, shape)
    assert np.array_equal(np.asarray(convert_colours(image, shape)), np.asarray(expected))


def _noise(mode: str, width: int, height: int) -> Image.Image:
    size = len(Image.new(mode, (width, height)).tobytes())
    image = Image.frombytes(mode, (width, height), np.random.default_rng(0).bytes(size))
    if mode in ("P", "PA"):
        image.putpalette(np.random.default_rng(1).bytes(768))
        image.info["transparency"] = 7
    return image


def _at_once(image: Image.Image, shape: InputSpec) -> Image.Image:
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image.alpha_composite(rgba)
    return image.convert("L" if shape.channels == 1 else "RGB")


@pytest.mark.parametrize(("name", "data"), laden(2_000_000), ids=[name for name, _ in laden(100)])
def test_countless_empty_parts_are_refused_before_they_are_walked(name: str, data: bytes) -> None:
    """Pillow takes seconds for some of these files. The steps are bounded, however many parts there are."""
    steps = _steps(data)
    assert steps < 12_000


def _steps(data: bytes) -> int:
    """Lines and calls of Python until the file is refused."""
    count = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        with pytest.raises(ImageError):
            decode(data, spec())
    finally:
        sys.settrace(before)
    return count


def test_a_file_in_many_large_parts_is_read() -> None:
    """As scanners and cameras write them: 8 KB of pixels per chunk, profiles in segments of 64 KB."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    data = file.getvalue()
    pixels = b"".join(_idat(data))
    split = [chunk(b"IDAT", pixels[at : at + 8192]) for at in range(0, len(pixels), 8192)]
    many = PNG_MAGIC + data[8:33] + b"".join(split) + chunk(b"IEND")
    assert np.array_equal(np.asarray(decode(many, spec(1500, 1500, 3))), noise)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", icc_profile=bytes(3_000_000), exif=exif())
    assert read_header(file.getvalue()).pixels == 1500 * 1500
    preprocess(file.getvalue(), spec())


def _idat(data: bytes) -> list[bytes]:
    at, found = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            found.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    return found


def test_a_frame_larger_than_its_screen_is_counted() -> None:
    """A GIF may have a screen of one pixel and a frame of millions."""
    data = bytearray(saved("GIF", "P", 4000, 3000))
    data[6:10] = b"\x01\x00\x01\x00"
    assert read_header(bytes(data)).pixels == 12_000_000
    with pytest.raises(TooManyPixels, match="4000 × 3000"):
        read_header(bytes(data), 1_000_000)


def test_a_second_header_with_more_pixels_is_refused() -> None:
    small, large = png(8, 8, 8, 0), png(3000, 3000, 8, 0)
    at = 8 + 25
    with pytest.raises(BrokenImage):
        decode(small[:at] + large[8:], spec())
    jpeg, other = saved("JPEG", "L", 8, 8), saved("JPEG", "L", 3000, 3000)
    frame = other.index(b"\xff\xc0")
    smuggled = other[frame : frame + 2 + int.from_bytes(other[frame + 2 : frame + 4])]
    scan = jpeg.index(b"\xff\xda")
    data = jpeg[:scan] + smuggled + jpeg[scan:]
    with pytest.raises(TooManyPixels):
        read_header(data, 1_000_000)


def test_memory_for_a_tile_larger_than_its_image_is_reserved() -> None:
    data = tiff(16, 16, tile=(8000, 8000))
    assert len(data) < 600_000
    assert read_header(data).peak_bytes(spec()) > 8000 * 8000 * 8


def test_run_length_encoded_pictures_are_small_or_refused() -> None:
    preprocess(bmp_run_length(300, 200), spec())
    with pytest.raises(TooManyPixels, match="run-length"):
        preprocess(bmp_run_length(4000, 3000), spec())


def test_modes_without_a_fixed_range_are_refused_before_decoding() -> None:
    data = bytearray(saved("TIFF", "F", 200, 200))
    assert data.count(bytes(4 * 200 * 200)) == 1
    with pytest.raises(ImageError, match="mode F"):
        decode(bytes(data.replace(bytes(4 * 200 * 200), b"")), spec())  # fails before it notices the missing pixels


def test_text_that_inflates_is_counted() -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1000)))
    small = png(40, 40, 8, 0)
    decode(small[:33] + 16 * text + small[33:], spec())
    with pytest.raises(BrokenImage, match="compressed texts"):
        decode(small[:33] + 17 * text + small[33:], spec())
