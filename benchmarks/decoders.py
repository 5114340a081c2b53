"""Decode and resize, library against library: the measurement behind docs/decisions/0002.

    taskset -c 1 make bench ONLY=decoders

Each cell is the median time of file bytes -> (28, 28) grey or (224, 224, 3) colour uint8, candidates
interleaved within every repetition. `error` is the mean absolute difference, in grey levels of 255, from
the whole image box-averaged in float64: what a perfect area resize of the full decode would give.
Candidates that are not installed are skipped, by name. Images are drawn here; nothing is downloaded.
"""

import importlib.metadata
import importlib.util
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Decode = Callable[[bytes, int, bool], np.ndarray]  # (file, side, colour) -> (side, side[, 3]) uint8
REPETITIONS = 9


def draw(height: int, width: int) -> np.ndarray:
    """A picture with smooth shading, edges and fine texture, (H, W, 3) uint8; the same every time."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    shading = np.stack([x, y, (x + y) / 2], axis=-1) * 160
    discs = sum((((x - cx) ** 2 + (y - cy) ** 2) < r**2) * 60.0 for cx, cy, r in rng.uniform(0.05, 0.6, (12, 3)))
    grain = rng.normal(0, 6, (height, width, 1))
    return np.clip(shading + discs[..., None] + grain, 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def pillow(data: bytes, side: int, colour: bool) -> np.ndarray:
    mode = "RGB" if colour else "L"
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode).resize((side, side), Image.Resampling.BILINEAR))


def pillow_draft(
    data: bytes, side: int, colour: bool, kernel: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """JPEG decoded at the smallest DCT scale that leaves at least two pixels for one; box-reduced before the filter."""
    mode = "RGB" if colour else "L"
    image = Image.open(io.BytesIO(data))
    image.draft(mode, (2 * side, 2 * side))
    return np.asarray(image.convert(mode).resize((side, side), kernel, reducing_gap=2.0))


def pillow_box(data: bytes, side: int, colour: bool) -> np.ndarray:
    return pillow_draft(data, side, colour, Image.Resampling.BOX)


def candidates() -> dict[str, Decode]:
    found: dict[str, Decode] = {"pillow": pillow, "pillow draft": pillow_draft, "pillow draft, box": pillow_box}
    if importlib.util.find_spec("pyspng"):
        from pyspng import _pyspng_c as spng

        def pyspng(data: bytes, side: int, colour: bool) -> np.ndarray:
            """PNG through libspng, the rest through Pillow."""
            if data[:4] != b"\x89PNG":
                return pillow_draft(data, side, colour)
            grey = data[25] == 0
            pixels = spng.spng_decode_image_bytes(data, spng.SPNG_FMT_G8 if grey else spng.SPNG_FMT_RGB8)
            if grey and not colour and pixels.shape[:2] == (side, side):
                return pixels[..., 0]
            image = Image.fromarray(pixels[..., 0] if grey else pixels).convert("RGB" if colour else "L")
            return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))

        found["pyspng + pillow draft"] = pyspng
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)

        def opencv(data: bytes, side: int, colour: bool) -> np.ndarray:
            flag = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
            if pixels.shape[:2] == (side, side):
                return pixels
            return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)

        def opencv_reduced(data: bytes, side: int, colour: bool) -> np.ndarray:
            if data[:2] != b"\xff\xd8":
                return opencv(data, side, colour)
            flag = cv2.IMREAD_REDUCED_COLOR_4 if colour else cv2.IMREAD_REDUCED_GRAYSCALE_8
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
            pixels = pixels[..., ::-1] if colour else pixels
            return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)

        found["opencv"] = opencv
        found["opencv reduced"] = opencv_reduced
    if importlib.util.find_spec("pyvips"):
        import pyvips

        def vips(data: bytes, side: int, colour: bool) -> np.ndarray:
            image = pyvips.Image.thumbnail_buffer(data, side, height=side, size="force")
            return image.colourspace("srgb" if colour else "b-w").numpy()

        found["libvips"] = vips
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        def simple(data: bytes, side: int, colour: bool) -> np.ndarray:
            if data[:2] != b"\xff\xd8":
                return pillow_draft(data, side, colour)
            pixels = simplejpeg.decode_jpeg(
                data, "RGB" if colour else "GRAY", min_height=2 * side, min_width=2 * side, min_factor=1
            )
            image = Image.fromarray(pixels if colour else pixels[..., 0])
            return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))

        found["simplejpeg + pillow"] = simple
    return found


def area_average(data: bytes, side: int, colour: bool) -> np.ndarray:
    """The whole decode, each output pixel the exact mean of the input area it covers; float64."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if colour else "L"), np.float64)
    for axis in (0, 1):
        n = pixels.shape[axis]
        total = np.concatenate([np.zeros_like(pixels.take([0], axis)), pixels.cumsum(axis)], axis)
        edges = np.linspace(0, n, side + 1)
        low = np.minimum(edges.astype(int), n - 1)
        part = (edges - low).reshape([-1 if a == axis else 1 for a in range(pixels.ndim)])
        at_edges = total.take(low, axis) * (1 - part) + total.take(low + 1, axis) * part
        pixels = np.diff(at_edges, axis=axis) * side / n
    return pixels


def median_us(run: Callable[[], object], budget_s: float) -> float:
    run()
    times, end = [], time.perf_counter() + budget_s
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    grey28 = draw(28, 28)[..., 1]
    files = {
        "28x28 PNG": encode(grey28, "PNG"),
        "1 MP PNG": encode(draw(866, 1155), "PNG"),
        "12 MP JPEG": encode(draw(3000, 4000), "JPEG"),
    }
    cells = [(name, side, side > 28) for name in files for side in (28, 224)]
    for package in ("pillow", "pyspng", "opencv-python-headless", "pyvips-binary", "simplejpeg"):
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{package}: not installed, skipped", file=sys.stderr)
            continue
        size = sum(Path(str(f.locate())).stat().st_size for f in distribution.files or [] if f.locate().is_file())
        print(f"{package} {distribution.version}: {size / 1e6:.1f} MB installed")
    print("\n| candidate | " + " | ".join(f"{n} to {s}: µs (error)" for n, s, _ in cells) + " |")
    print("| --- |" + " --- |" * len(cells))
    decoders = candidates()
    times: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(REPETITIONS):
        for name, decode in decoders.items():
            for file, side, colour in cells:
                run = lambda d=decode, f=file, s=side, c=colour: d(files[f], s, c)
                times.setdefault((name, file, side), []).append(median_us(run, 0.05))
    truth = {(f, s): area_average(files[f], s, c) for f, s, c in cells}
    for name, decode in decoders.items():
        row = []
        for file, side, colour in cells:
            error = np.abs(np.float64(decode(files[file], side, colour)).squeeze() - truth[file, side]).mean()
            row.append(f"{statistics.median(times[name, file, side]):,.0f} ({error:.2f})")
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
