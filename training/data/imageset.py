"""Images from IDX files or folders, brought to the bundle's input by the code that serving uses."""

import gzip
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle import ImageError, InputSpec, preprocess, preprocess_pixels
from training import ranks
from training.data import digits, textures
from training.data.arrays import Rows, allocate, chunks, shared, take, without
from training.errors import TrainingError
from training.progress import say, track

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MOST_BROKEN = 0.05  # of a folder's images; above it something else is wrong
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_NPZ_FILES = {"train": "train.npz", "test": "test.npz"}
NAMED = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
TEXTURED = {f"{name}-textured": name for name in NAMED}  # made of those when they are read
MADE_HERE = (*NAMED, *TEXTURED, digits.NAME)


@dataclass(frozen=True)
class ImageSet:
    """`labels` index `classes`; both are empty where the images have none, `names` where they are not files.

    Images to adapt to have the source's classes, and no labels.
    """

    images: np.ndarray | Rows  # (N, H, W, C) uint8, as the encoder takes them; Rows where it is larger than memory
    labels: np.ndarray  # (N,) int64, or (0,)
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()  # paths within the folder

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> "ImageSet":
        labels = self.labels[indices] if len(self.labels) else self.labels
        names = tuple(self.names[index] for index in indices) if self.names else ()
        return ImageSet(take(self.images, indices), labels, self.classes, names)

    def unlabelled(self, classes: tuple[str, ...]) -> "ImageSet":
        """The same images without their labels; they may be of these classes."""
        return ImageSet(self.images, np.array([], np.int64), classes, self.names)

    def name(self, index: int) -> str:
        return self.names[index] if self.names else f"number {index}"

    def hashes(self) -> Iterator[bytes]:
        """Of each image, in order: what is alike to the pixel has the same; a set larger than memory is not held."""
        return (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in self.images)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (*chunks(self.images), self.labels):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def root() -> Path:
    """Where named data sets lie: GRAFT_DATA, or the user's cache."""
    given = os.environ.get("GRAFT_DATA")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft" / "data"


def has_parts(data: str) -> bool:
    """Whether train and test are told apart by the data set itself."""
    folder = Path(data)
    kinds = (_IDX_FILES["test"][0], _NPZ_FILES["test"])
    return (
        data in (*NAMED, *TEXTURED)
        or (folder / "test").is_dir()
        or any(find(folder, name) is not None for name in kinds)
    )


def load(data: str, part: str, spec: InputSpec) -> ImageSet:
    """`data` is a named data set or a folder: of IDX files, of train.npz and test.npz, of class folders, or of images.

    `part` is train or test; of a folder that does not tell them apart it is all there is.
    """
    if data in MADE_HERE:
        return _load_named(data, part, spec)
    folder = Path(data)
    if not folder.is_dir():
        raise TrainingError(f"{data}: neither a data set of ours ({', '.join(MADE_HERE)}) nor a folder")
    if find(folder, _IDX_FILES["train"][0]) is not None:
        return read_idx_set(folder, part, spec, ())
    if find(folder, _NPZ_FILES["train"]) is not None:
        return read_npz(folder / _NPZ_FILES[part], spec)
    inside = folder / part
    return read_folder(inside if inside.is_dir() else folder, spec)


def _load_named(name: str, part: str, spec: InputSpec) -> ImageSet:
    if name == digits.NAME:
        pixels, labels = digits.read(root() / name)
        return ImageSet(_brought_to(spec, pixels), labels, NAMED["mnist"])
    plain = TEXTURED.get(name, name)
    folder = root() / plain
    if is_missing(plain):
        raise TrainingError(
            f"{plain}: its files are not in {folder}; `python -m training data {plain} --download` fetches them, "
            "or set GRAFT_DATA to the folder that holds them"
        )
    if name not in TEXTURED:
        return read_idx_set(folder, part, spec, NAMED[name])
    surfaces = root() / textures.FOLDER
    return read_idx_set(folder, part, spec, NAMED[plain], lambda pixels: textures.textured(pixels, surfaces, part))


def is_missing(named: str) -> bool:
    return any(find(root() / named, stem) is None for stems in _IDX_FILES.values() for stem in stems)


def find(folder: Path, name: str) -> Path | None:
    """The file, or the same gzipped."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx_set(
    folder: Path,
    part: str,
    spec: InputSpec,
    classes: tuple[str, ...],
    changed: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> ImageSet:
    paths = [find(folder, stem) for stem in _IDX_FILES[part]]
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
    return ImageSet(_brought_to(spec, changed(pixels)), labels, classes)


def _brought_to(spec: InputSpec, pixels: np.ndarray) -> np.ndarray:
    """(N, …) pixels of one size → (N, H, W, C), each as if it had come in a file."""
    if pixels.shape[1:] == spec.shape or (*pixels.shape[1:], 1) == spec.shape:
        return pixels.reshape(len(pixels), *spec.shape)
    images = allocate((len(pixels), *spec.shape), np.uint8)
    for index, image in enumerate(track(pixels, "resize", len(pixels))):
        images[index] = preprocess_pixels(image, spec)
    return images


def read_npz(path: Path, spec: InputSpec) -> ImageSet:
    """`images` (N, H, W) or (N, H, W, 1, 3 or 4) uint8, and where there are labels `labels` (N,) and `classes`."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from None
    pixels = arrays.get("images")
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not len(pixels):
        found = "missing" if pixels is None else f"{pixels.dtype} {pixels.shape}"
        raise TrainingError(f"{path}: `images` is {found}; uint8 of (N, H, W) or (N, H, W, C) is expected")
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4):
        raise TrainingError(f"{path}: `images` has {pixels.shape[3]} channels: 1, 3 or 4 are read")
    labels = arrays.get("labels", np.array([], np.int64)).astype(np.int64)
    if labels.shape not in ((0,), (len(pixels),)) or labels.min(initial=0) < 0:
        raise TrainingError(f"{path}: `labels` is {labels.shape}; one number from 0 for each of {len(pixels)} images")
    names = arrays.get("classes", np.arange(labels.max(initial=-1) + 1))
    if len(labels) and labels.max() >= len(names):
        raise TrainingError(f"{path}: label {labels.max()} of {len(names)} classes")
    return ImageSet(_brought_to(spec, pixels), labels, tuple(str(name) for name in names) if len(labels) else ())


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


def read_folder(folder: Path, spec: InputSpec, most_broken: float = MOST_BROKEN) -> ImageSet:
    """A folder per class, or images alone. Files that cannot be read are named, counted and left out."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and any(_images_in(entry))))
    files = [(path, index) for index, name in enumerate(classes) for path in sorted(_images_in(folder / name))]
    if not classes:
        files = [(path, -1) for path in sorted(_images_in(folder))]
    if not files:
        others = sorted({path.suffix for path in folder.rglob("*") if path.is_file() and path.suffix})[:5]
        found = f" (but {', '.join(others)})" if others else ""
        raise TrainingError(
            f"{folder}: no images in it, nor in the folders right below it{found}: "
            f"put images there, or a folder of them for each class ({', '.join(sorted(SUFFIXES))})"
        )

    def read(path: Path) -> np.ndarray | str:
        try:
            return preprocess(path.read_bytes(), spec)
        except (ImageError, OSError) as error:
            return f"{path}: {error}"

    place, places = ranks.here()
    mine = range(place, len(files), places)
    here: dict[int, str] = {}
    with shared((len(files), *spec.shape), np.uint8) as images, ThreadPoolExecutor() as pool:
        results = pool.map(read, (files[index][0] for index in mine))
        for index, result in track(zip(mine, results, strict=True), str(folder), len(mine)):
            if isinstance(result, str):
                here[index] = result
            else:
                images[index] = result
    broken = dict(sorted(pair for some in ranks.of_all(here) for pair in some.items()))
    for message in broken.values():
        say(f"left out {message}")
    if len(broken) > most_broken * len(files):
        first = next(iter(broken.values()))
        raise TrainingError(
            f"{folder}: {len(broken)} of {len(files)} images cannot be read, the first {first}; mend or remove them"
        )
    files = [file for index, file in enumerate(files) if index not in broken]
    labels = np.array([label for _, label in files] if classes else [], np.int64)
    names = tuple(str(path.relative_to(folder)) for path, _ in files)
    return ImageSet(without(images, broken), labels, classes, names)


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
