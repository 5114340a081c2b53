"""How each kind of image is processed, as described in docs/preprocessing.md."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms, ImageDraw
from pydantic import ValidationError
from support import SPECS, spec

from app.bundle import InputSpec, preprocess, preprocess_pixels
from app.bundle.drawings import golden_files
from app.bundle.encode import png
from app.errors import BrokenImage, NotAnImage, TooManyPixels

GREY, COLOUR = spec(28, 28), spec(28, 28, 3)
RAMP = np.tile(np.arange(28, dtype=np.uint8) * 9, (28, 1))
RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (28, 28, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601, rounded as in Pillow."""
    r, g, b = (rgb[..., i].astype(np.uint32) for i in range(3))
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).astype(np.uint8)


def test_grey_stays_as_it_is() -> None:
    assert np.array_equal(preprocess(png(Image.fromarray(RAMP)), GREY)[..., 0], RAMP)


def test_grey_for_a_colour_model_is_repeated_in_all_channels() -> None:
    assert np.array_equal(preprocess(png(Image.fromarray(RAMP)), COLOUR), np.stack([RAMP] * 3, axis=-1))


def test_colour_for_a_grey_model_becomes_luma() -> None:
    assert np.array_equal(preprocess(png(Image.fromarray(NOISE)), GREY)[..., 0], luma(NOISE))


@pytest.mark.parametrize(("background", "level"), [("black", 0), ("white", 255)])
def test_alpha_is_composited_over_the_background(background: str, level: int) -> None:
    alpha = np.full((28, 28), 255, np.uint8)
    alpha[:14] = 0
    image = Image.fromarray(np.dstack([NOISE, alpha]))
    pixels = preprocess(png(image), spec(28, 28, 3, background=background))
    assert (pixels[:14] == level).all()
    assert np.array_equal(pixels[14:], NOISE[14:])
    grey = Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(alpha)])
    pixels = preprocess(png(grey), spec(28, 28, 1, background=background))
    assert (pixels[:14] == level).all()
    assert np.array_equal(pixels[14:, :, 0], RAMP[14:])


def test_palettes_are_expanded_with_their_transparency() -> None:
    image = Image.fromarray(NOISE).quantize(16)
    assert np.array_equal(preprocess(png(image), COLOUR), np.asarray(image.convert("RGB")))
    clear = encoded(image, "PNG", transparency=0)
    gone = np.asarray(image) == 0
    assert gone.any()
    assert (preprocess(clear, spec(28, 28, 3, background="white"))[gone] == 255).all()


def test_a_transparent_grey_level_shows_the_background() -> None:
    file = encoded(Image.fromarray(RAMP), "PNG", transparency=int(RAMP[0, 5]))
    assert (preprocess(file, spec(28, 28, background="white"))[:, 5] == 255).all()


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 1), (4, 5), (16, 0x4012)])
def test_a_transparent_grey_is_matched_at_every_depth(depth: int, value: int) -> None:
    """One column has that grey; only there the white background is visible."""
    levels = [0, value] * 8
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    row = b"\x00" + int(bits, 2).to_bytes(len(bits) // 8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 1, depth, 0, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(">H", value))
    file = b"\x89PNG\r\n\x1a\n" + header + transparent + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    pixels = preprocess(file, spec(1, 16, background="white"))[0, :, 0]
    assert pixels.tolist() == [0, 255] * 8


def test_a_sixteen_bit_neighbour_of_the_transparent_grey_stays() -> None:
    deep = np.array([[0x4012, 0x4013]], np.uint16)
    file = encoded(Image.fromarray(deep), "PNG", transparency=0x4012)
    assert preprocess(file, spec(1, 2, background="white")).ravel().tolist() == [255, 0x40]


def test_one_bit_is_black_and_white() -> None:
    bits = RAMP > 100
    assert np.array_equal(preprocess(png(Image.fromarray(bits)), GREY)[..., 0], bits * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(kind: str) -> None:
    deep = RNG.integers(0, 65536, (28, 28), dtype=np.uint16)
    assert np.array_equal(preprocess(encoded(Image.fromarray(deep), kind), GREY)[..., 0], deep >> 8)


@pytest.mark.parametrize("orientation", [1, 3])
def test_twelve_bits_keep_the_upper_eight(orientation: int) -> None:
    """Pillow decodes them to 0…4095 in 16 bits, whose high byte has only 16 values."""
    deep = np.arange(4096 - 28 * 28, 4096, dtype=np.uint16).reshape(28, 28) - RNG.integers(0, 3000, (28, 28), np.uint16)
    packed = int("".join(f"{level:012b}" for level in deep.ravel()), 2).to_bytes(28 * 28 * 3 // 2)
    tags = ((256, 28), (257, 28), (258, 12), (259, 1), (262, 1), (273, 8), (274, orientation), (278, 28))
    tags = (*tags, (279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    ifd = struct.pack("<H", len(tags)) + entries + bytes(4)
    file = b"II*\x00" + struct.pack("<I", 8 + len(packed)) + packed + ifd
    pixels = preprocess(file, GREY)[..., 0]
    assert np.array_equal(pixels if orientation == 1 else pixels[::-1, ::-1], deep >> 4)


def test_sixteen_bits_of_colour_keep_the_high_byte_too() -> None:
    deep = RNG.integers(0, 65536, (28, 28, 3), dtype=np.uint16)
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in deep)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 16, 2, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(preprocess(file, COLOUR), deep >> 8)


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    blocks = np.kron(RNG.integers(0, 2, (4, 4, 3), dtype=np.uint8) * 255, np.ones((16, 16, 1), np.uint8))
    file = encoded(Image.fromarray(blocks).convert("CMYK"), "JPEG", quality=100)
    pixels = preprocess(file, spec(4, 4, 3, filter="box"))
    assert np.abs(pixels.astype(int) - blocks[8::16, 8::16]).max() <= 3
    grey = preprocess(file, spec(4, 4, 1, filter="box"))
    assert np.abs(grey[..., 0].astype(int) - luma(blocks[8::16, 8::16])).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    """All eight orientations give the same upright image: a bright patch at the top left."""
    upright = Image.new("L", (40, 24))
    ImageDraw.Draw(upright).rectangle((0, 0, 11, 7), fill=255)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition whose inverse EXIF asks for
    held = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    pixels = preprocess(encoded(held, kind, exif=exif, **lossless), spec(24, 40))[..., 0].astype(int)
    assert pixels[2:6, 2:10].min() > 230
    assert pixels[10:, :].max() < 25
    assert pixels[:, 14:].max() < 25


def test_exif_orientation_is_applied_where_a_deep_grey_is_transparent() -> None:
    deep = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    exif = Image.Exif()
    exif[0x0112] = 3
    file = encoded(Image.fromarray(deep), "PNG", transparency=int(deep[20, 4]), exif=exif)
    pixels = preprocess(file, spec(28, 28, background="white"))[..., 0]
    expected = (deep >> 8).astype(np.uint8)
    expected[20, 4] = 255
    assert np.array_equal(pixels, expected[::-1, ::-1])


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_keeps_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("white", "black", "red")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert (preprocess(file, COLOUR) == 255).all()


def test_one_pixel_fills_the_image() -> None:
    assert (preprocess(png(Image.new("L", (1, 1), 77)), GREY) == 77).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_twelve_megapixels_shrink_to_their_average(kind: str) -> None:
    y, x = np.mgrid[0:3000, 0:4000]
    large = ((x // 1000 * 60 + y // 1000 * 20) % 256).astype(np.uint8)
    options = {"compress_level": 1} if kind == "PNG" else {"lossless": True, "method": 0} if kind == "WEBP" else {}
    pixels = preprocess(encoded(Image.fromarray(large), kind, **options), spec(3, 4, filter="box"))
    assert np.abs(pixels[..., 0].astype(int) - large[500::1000, 500::1000]).max() <= 2


def test_shrinking_averages_and_does_not_skip() -> None:
    """A checkerboard finer than a pixel becomes grey; taking every n-th pixel would leave it black or white."""
    board = (np.indices((280, 280)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for kind in ("box", "bilinear", "bicubic", "lanczos"):
        pixels = preprocess(png(Image.fromarray(board)), spec(28, 28, filter=kind))
        assert np.abs(pixels.astype(int) - 127).max() <= 2


def test_stretch_pad_and_crop() -> None:
    """A wide image, white in its middle third: stretched, between bars, or only its middle."""
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255
    file = png(Image.fromarray(wide))
    side = {"height": 12, "width": 12, "filter": "box"}
    stretched = preprocess(file, spec(**side, resize="stretch"))[..., 0]
    assert (stretched[:, 4:8] == 255).all()
    assert not stretched[:, :4].any()
    padded = preprocess(file, spec(**side, resize="pad"))[..., 0]
    assert (padded[4:8, 4:8] == 255).all()
    assert not padded[:4].any()
    assert not padded[8:].any()
    assert (preprocess(file, spec(**side, resize="pad", background="white"))[:4] == 255).all()
    assert (preprocess(file, spec(**side, resize="crop")) == 255).all()


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(1, 999), (999, 1), (7, 3), (29, 28), (3, 200), (31, 3)])
def test_odd_sizes_give_the_shape_of_the_spec(resize: str, size: tuple[int, int]) -> None:
    for shape in (spec(28, 28, resize=resize), spec(5, 31, 3, resize=resize), spec(1, 15, resize=resize)):
        assert preprocess(png(Image.new("RGB", size, "white")), shape).shape == shape.shape


def test_bars_repeat_the_edge_or_have_a_colour() -> None:
    """A tall image between bars: what the bars hold, and that nothing of the image itself moves."""
    tall = RNG.integers(0, 256, (12, 4, 3), dtype=np.uint8)
    file = png(Image.fromarray(tall))
    for padding in ("background", "edge", (9, 80, 200)):
        pixels = preprocess(file, spec(12, 11, 3, resize="pad", padding=padding))
        assert np.array_equal(pixels[:, 3:7], tall)
        left, right = pixels[:, :3], pixels[:, 7:]  # three columns and four
        if padding == "edge":
            assert (left == tall[:, :1]).all()
            assert (right == tall[:, -1:]).all()
        else:
            assert (left == ((0, 0, 0) if padding == "background" else padding)).all()
            assert (right == left[0, 0]).all()
    wide = preprocess_pixels(RAMP[:4], spec(9, 28, resize="pad", padding=(77,)))[..., 0]
    assert (wide[:2] == 77).all()
    assert (wide[6:] == 77).all()
    assert np.array_equal(wide[2:6], RAMP[:4])


def test_a_colour_of_bars_has_a_level_for_each_channel() -> None:
    for channels, padding in ((1, (1, 2, 3)), (3, (1,)), (3, (1, 2, 256)), (3, (1, 2, -1)), (1, ())):
        with pytest.raises(ValidationError, match="padding"):
            spec(4, 4, channels, resize="pad", padding=padding)


@settings(max_examples=300, deadline=None)
@given(
    long=st.integers(1, 5000),
    upright=st.booleans(),
    kind=st.sampled_from(["PNG", "JPEG"]),
    shape=st.builds(
        spec,
        height=st.integers(1, 96),
        width=st.integers(1, 96),
        resize=st.sampled_from(["stretch", "pad", "crop"]),
        filter=st.sampled_from(["box", "bilinear", "bicubic", "lanczos"]),
        padding=st.sampled_from(["background", "edge", (128,)]),
    ),
)
def test_any_aspect_gives_the_shape_of_the_spec(long: int, upright: bool, kind: str, shape: InputSpec) -> None:
    """From a pixel to a line of 5,000; of a grey line every policy but bars of another colour makes the same grey."""
    size = (1, long) if upright else (long, 1)
    pixels = preprocess(encoded(Image.new("L", size, 128), kind), shape)
    assert pixels.shape == shape.shape
    bars = shape.resize == "pad" and shape.padding == "background"
    assert set(np.unique(pixels)) <= ({0, 128} if bars else {128})


# --- refusals ----------------------------------------------------------------------------------------------------


def test_the_bytes_decide_not_the_name() -> None:
    """File names are not passed on: a JPEG called .png is a JPEG."""
    file = encoded(Image.fromarray(NOISE), "JPEG")
    assert preprocess(file, COLOUR).shape == (28, 28, 3)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%PDF-1.7", b"\x00" * 100, b"<svg/>", b"RIFF\x00\x00\x00\x00WAVE", b"\x1f\x8b\x08"]
)
def test_bytes_that_are_not_an_image_are_refused(data: bytes) -> None:
    with pytest.raises(NotAnImage):
        preprocess(data, GREY)


def files_of_every_format() -> dict[str, bytes]:
    drawn = Image.fromarray(NOISE)
    made = {kind: encoded(drawn, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}
    made["PNG by Pillow"] = encoded(drawn, "PNG", dpi=(72, 72))
    made["interlaced palette"] = encoded(drawn.quantize(200), "GIF", interlace=1)
    made["progressive JPEG"] = encoded(drawn, "JPEG", progressive=True)
    made["lossless WebP"] = encoded(drawn, "WEBP", lossless=True)
    made["LZW TIFF"] = encoded(drawn, "TIFF", compression="tiff_lzw")
    return made


@pytest.mark.parametrize("kind", files_of_every_format())
def test_a_truncated_file_is_broken_wherever_it_is_cut(kind: str) -> None:
    whole = files_of_every_format()[kind]
    assert preprocess(whole, COLOUR).shape == COLOUR.shape
    for tenth in range(1, 10):
        with pytest.raises((BrokenImage, NotAnImage)) as refused:
            preprocess(whole[: len(whole) * tenth // 10], COLOUR)
        assert "object at" not in str(refused.value)


def test_a_png_without_its_end_is_broken() -> None:
    whole = png(Image.fromarray(RAMP))
    for cut in (1, 4, 12, 13, 16):
        with pytest.raises(BrokenImage):
            preprocess(whole[:-cut], GREY)


def test_a_flipped_bit_in_a_png_is_found() -> None:
    whole = bytearray(png(Image.fromarray(NOISE)))
    whole[200] ^= 4
    with pytest.raises(BrokenImage):
        preprocess(bytes(whole), COLOUR)


def test_floats_and_other_ranges_are_refused_by_name() -> None:
    with pytest.raises(NotAnImage, match="mode F"):
        preprocess(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), GREY)
    lab = ImageCms.profileToProfile(
        Image.fromarray(NOISE), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    with pytest.raises(NotAnImage, match="mode LAB"):
        preprocess(encoded(lab, "TIFF"), GREY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_too_many_pixels_are_refused_by_the_header(kind: str) -> None:
    file = encoded(Image.new("RGB", (300, 200)), kind)
    preprocess(file, GREY, max_pixels=60_000)
    with pytest.raises(TooManyPixels, match="300 × 200"):
        preprocess(file, GREY, max_pixels=59_999)


def test_a_header_of_gigapixels_costs_nothing() -> None:
    """65,535 × 65,535, and the largest sizes of each format: refused before memory is allocated."""
    gif = encoded(Image.fromarray(RAMP), "GIF")
    claims = [
        png_header(65535, 65535) + chunk(b"IDAT", zlib.compress(b"\x00" * 1000)) + chunk(b"IEND", b""),
        png_header(2**31 - 1, 2**31 - 1) + chunk(b"pHYs", b"\x00" * 9) + chunk(b"IEND", b""),
        gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:],
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 65535, 65535, 1, 24, 0, 0, 0, 0, 0, 0),
        b"RIFF\x1e\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + b"\xfe\xff\x00" * 2 + b"\x00" * 8,
        b"RIFF\x1e\x00\x00\x00WEBPVP8L\x0a\x00\x00\x00\x2f\xff\xff\xff\x0f" + b"\x00" * 12,
        b"RIFF\x1e\x00\x00\x00WEBPVP8 \x0a\x00\x00\x00\x00\x00\x00\x9d\x01\x2a\xff\x3f\xff\x3f" + b"\x00" * 8,
    ]
    for claim in claims:
        with pytest.raises(TooManyPixels):
            preprocess(claim, GREY)


def test_a_bomb_in_a_text_chunk_is_not_inflated() -> None:
    bomb = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(b"\x00" * 50_000_000, 9))
    whole = png(Image.fromarray(RAMP))
    for file in (whole[:33] + bomb + whole[33:], whole[:-12] + bomb + whole[-12:]):
        with pytest.raises(BrokenImage):
            preprocess(file, GREY)


def test_a_jpeg_of_endless_scans_is_refused_at_once() -> None:
    """Each scan of fifty bytes would process the whole image again."""
    whole = encoded(Image.fromarray(NOISE), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    bomb = whole[:-2] + whole[start:-2] * 2000 + whole[-2:]
    with pytest.raises(BrokenImage, match="scans"):
        preprocess(bomb, COLOUR)


# --- properties --------------------------------------------------------------------------------------------------

PIXELS = (
    st.integers(1, 4)
    .flatmap(
        lambda depth: hnp.arrays(
            np.uint8, st.tuples(st.integers(1, 48), st.integers(1, 48)).map(lambda s: s if depth == 2 else (*s, depth))
        )
    )
    .filter(lambda a: a.ndim == 2 or a.shape[2] in (3, 4))
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(pixels=PIXELS, shape=SPECS)
def test_pixels_from_an_array_and_from_a_file_are_the_same(pixels: np.ndarray, shape: InputSpec) -> None:
    """Training may read arrays, serving reads files. The pixels are equal bit for bit, in every mode."""
    from_array = preprocess_pixels(pixels, shape)
    for file in (png(Image.fromarray(pixels)), encoded(Image.fromarray(pixels), "PNG", dpi=(72, 72), compress_level=1)):
        assert np.array_equal(preprocess(file, shape), from_array)
    assert from_array.shape == shape.shape
    assert from_array.dtype == np.uint8


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_give_an_image_error_or_an_image(data: st.DataObject) -> None:
    """Never another exception, so the client always learns what is wrong."""
    kind = data.draw(st.sampled_from(sorted(FILES)))
    file = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BrokenImage, NotAnImage, TooManyPixels):
        assert preprocess(bytes(file), COLOUR, max_pixels=100_000).shape == COLOUR.shape


FILES = files_of_every_format() | {f"golden {i}": file for i, file in enumerate(golden_files())}
