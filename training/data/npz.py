"""NumPy archives: train.npz and test.npz, with images, labels and classes."""

import zipfile
from pathlib import Path

import numpy as np

from app.bundle import InputSpec
from training.data.imageset import ImageSet
from training.data.pixels import to_input
from training.errors import TrainingError

FILES = {"train": "train.npz", "test": "test.npz"}


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
    return ImageSet(to_input(spec, pixels), labels, tuple(str(name) for name in names) if len(labels) else ())
