"""Images from IDX files or folders, brought to the bundle's input by the code that serving uses."""

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle import ImageError, InputSpec, preprocess, preprocess_pixels
from training.errors import TrainingError
from training.progress import say, track

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MOST_BROKEN = 0.05  # of a folder's images; above it something else is wrong
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMED = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


@dataclass(frozen=True)
class ImageSet:
    """`labels` index `classes`; both are empty where the images have none."""

    images: np.ndarray  # (N, H, W, C) uint8, as the encoder takes them
    labels: np.ndarray  # (N,) int64, or (0,)
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> "ImageSet":
        return ImageSet(self.images[indices], self.labels[indices] if len(self.labels) else self.labels, self.classes)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def root() -> Path:
    """Where named data sets lie: GRAFT_DATA, or the user's cache."""
    given = os.environ.get("GRAFT_DATA")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft" / "data"


def load(data: str, part: str, spec: InputSpec) -> ImageSet:
    """`data` is a named data set or a path: a folder of IDX files, of class folders, or of images.

    `part` is train or test.
    """
    if data in NAMED:
        folder = root() / data
        if is_missing(data):
            raise TrainingError(
                f"{data}: its files are not in {folder}; `python -m training data {data} --download` fetches them, "
                "or set GRAFT_DATA to the folder that holds them"
            )
        return read_idx_set(folder, part, spec, NAMED[data])
    folder = Path(data)
    if not folder.is_dir():
        raise TrainingError(f"{data}: neither a data set of ours ({', '.join(NAMED)}) nor a folder")
    if find_idx(folder, _IDX_FILES["train"][0]) is not None:
        return read_idx_set(folder, part, spec, ())
    inside = folder / part
    return read_folder(inside if inside.is_dir() else folder, spec)


def is_missing(named: str) -> bool:
    return any(find_idx(root() / named, stem) is None for stems in _IDX_FILES.values() for stem in stems)


def find_idx(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def read_idx_set(folder: Path, part: str, spec: InputSpec, classes: tuple[str, ...]) -> ImageSet:
    paths = [find_idx(folder, stem) for stem in _IDX_FILES[part]]
    if paths[0] is None or paths[1] is None:
        missing = [stem for stem, path in zip(_IDX_FILES[part], paths, strict=True) if path is None]
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
    if (*pixels.shape[1:], 1) == spec.shape:
        return ImageSet(pixels[..., None], labels, classes)
    images = np.stack([preprocess_pixels(image, spec) for image in pixels])
    return ImageSet(images, labels, classes)


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


def read_folder(folder: Path, spec: InputSpec) -> ImageSet:
    """A folder per class, or images alone. Files that cannot be read are named, counted and left out."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and any(_images_in(entry))))
    files = [(path, index) for index, name in enumerate(classes) for path in sorted(_images_in(folder / name))]
    if not classes:
        files = [(path, -1) for path in sorted(_images_in(folder))]
    if not files:
        raise TrainingError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))}), nor in folders below it")

    def read(path: Path) -> np.ndarray | str:
        try:
            return preprocess(path.read_bytes(), spec)
        except (ImageError, OSError) as error:
            return f"{path}: {error}"

    images = np.empty((len(files), *spec.shape), np.uint8)
    labels: list[int] = []
    broken: list[str] = []
    with ThreadPoolExecutor() as pool:
        for (_, label), result in track(
            zip(files, pool.map(read, (path for path, _ in files)), strict=True), str(folder), len(files)
        ):
            if isinstance(result, str):
                broken.append(result)
            else:
                images[len(labels)] = result
                labels.append(label)
    for message in broken:
        say(f"left out {message}")
    if len(broken) > MOST_BROKEN * len(files):
        raise TrainingError(f"{folder}: {len(broken)} of {len(files)} images cannot be read, the first {broken[0]}")
    return ImageSet(images[: len(labels)], np.array(labels if classes else [], np.int64), classes)


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def split(data: ImageSet, sizes: tuple[int, ...], seed: int) -> tuple[ImageSet, ...]:
    """(what is left, a set of each size): seeded, every class in its proportion, no image twice."""
    if sum(sizes) >= len(data):
        raise TrainingError(f"{len(data)} images cannot give {' + '.join(map(str, sizes))} and leave any to train on")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(data))
    if len(data.labels):
        # Within the shuffled order, give each image its rank in its class as a share of the class: sorting by
        # that share deals every class out evenly, so that any prefix is stratified.
        labels = data.labels[shuffled]
        share = np.empty(len(data))
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            share[members] = (np.arange(len(members)) + rng.random()) / len(members)
        shuffled = shuffled[np.argsort(share, kind="stable")]
    ends = np.cumsum(sizes)
    parts = [data.take(np.sort(p)) for p in np.split(shuffled, ends)]
    return (parts[-1], *parts[:-1])
