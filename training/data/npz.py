"""NumPy archives: train.npz and test.npz, with images, labels and classes."""

from pathlib import Path

import numpy as np

from app.bundle import InputSpec
from training.data.imageset import ImageSet, refuse_bad_names
from training.data.pixels import to_input
from training.errors import TrainingError, in_short

FILES = {"train": "train.npz", "test": "test.npz"}


def read_npz(path: Path, spec: InputSpec | None) -> ImageSet:
    """`images` (N, H, W) or (N, H, W, 1, 3 or 4) uint8, and where there are labels `labels` (N,) and `classes`."""
    arrays = _arrays(path)
    pixels = arrays.get("images")
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not pixels.size:
        found = "missing" if pixels is None else f"{pixels.dtype} {pixels.shape}"
        raise TrainingError(f"{path}: `images` is {found}; uint8 of (N, H, W) or (N, H, W, C) is expected")
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4):
        raise TrainingError(f"{path}: `images` has {pixels.shape[3]} channels: 1, 3 or 4 are read")
    labels = arrays.get("labels", np.array([], np.int64))
    if labels.size and not (labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and (labels % 1 == 0).all())):
        raise TrainingError(f"{path}: `labels` is {labels.dtype}; whole numbers are expected, and names in `classes`")
    labels = labels.astype(np.int64)
    if labels.shape not in ((0,), (len(pixels),)) or labels.min(initial=0) < 0:
        raise TrainingError(f"{path}: `labels` is {labels.shape}; one number from 0 for each of {len(pixels)} images")
    named = arrays.get("classes", np.arange(labels.max(initial=-1) + 1))
    names = tuple(str(name) for name in named) if named.ndim == 1 else ()
    if len(labels) and labels.max() >= len(names):
        raise TrainingError(f"{path}: label {labels.max()} of {len(names)} classes; `classes` names each, in a list")
    refuse_bad_names(names, f"{path}: `classes`")
    return ImageSet(to_input(spec, pixels), labels, names if len(labels) else ())


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: of a damaged file np.load leaves its own open. An .npy file is one array, which `with` refuses.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except MemoryError:
        raise TrainingError(f"{path}: its arrays do not fit into memory; use a folder of image files") from None
    except Exception as error:  # a zip file that is damaged raises nearly anything
        raise TrainingError(f"{path}: cannot be read: {in_short(error)}") from None
