"""IDX files, the format of MNIST: images and labels of a part in a file each, gzipped or not."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.bundle import InputSpec
from training.data.imageset import ImageSet
from training.data.pixels import to_input
from training.errors import TrainingError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def find(folder: Path, name: str) -> Path | None:
    """The file, or the same gzipped."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx_set(
    folder: Path,
    part: str,
    spec: InputSpec | None,
    classes: tuple[str, ...],
    changed: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> ImageSet:
    paths = [find(folder, stem) for stem in FILES[part]]
    if paths[0] is None or paths[1] is None:
        missing = [stem for stem, path in zip(FILES[part], paths, strict=True) if path is None]
        raise TrainingError(f"{folder}: {' and '.join(missing)} (or .gz) not found")
    pixels, labels = read_idx(paths[0]), read_idx(paths[1]).astype(np.int64)
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise TrainingError(
            f"{folder}: {paths[0].name} holds {pixels.shape}, {paths[1].name} {labels.shape}: "
            "not as many labels as images"
        )
    if not classes:
        classes = tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))
    if labels.max(initial=0) >= len(classes):
        raise TrainingError(f"{paths[1]}: label {labels.max()} of {len(classes)} classes")
    return ImageSet(to_input(spec, changed(pixels)), labels, classes)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes, gzipped or not: magic 00 00 08 <dimensions>, sizes big-endian, then the values."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from None
    if data[:3] != b"\x00\x00\x08" or len(data) < 4:
        raise TrainingError(f"{path}: not an IDX file of bytes: it begins with {data[:4]!r}, not 00 00 08")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start]) if len(data) >= start else ()
    if not shape or len(data) - start != np.prod(shape, dtype=np.int64):
        raise TrainingError(f"{path}: {len(data) - start:,} values, its header says {shape}: download it again")
    return np.frombuffer(bytearray(data), np.uint8, offset=start).reshape(shape)  # a bytearray can be written to
