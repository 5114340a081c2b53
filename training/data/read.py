"""A named data set or a folder → the images of one of its parts."""

from pathlib import Path

from app.bundle import InputSpec
from training.data import idx, npz
from training.data.folder import read_folder
from training.data.imageset import ImageSet
from training.data.named import CLASSES, NAMES, TEXTURED, read_named
from training.errors import TrainingError


def has_parts(data: str) -> bool:
    """Whether train and test are told apart by the data set itself."""
    folder = Path(data)
    kinds = (idx.FILES["test"][0], npz.FILES["test"])
    return (
        data in (*CLASSES, *TEXTURED)
        or (folder / "test").is_dir()
        or any(idx.find(folder, name) is not None for name in kinds)
    )


def read_part(data: str, part: str, spec: InputSpec) -> ImageSet:
    """`data` is a named data set or a folder: of IDX files, of train.npz and test.npz, of class folders, or of images.

    `part` is train or test; of a folder that does not tell them apart it is all there is.
    """
    if data in NAMES:
        return read_named(data, part, spec)
    folder = Path(data)
    if not folder.is_dir():
        raise TrainingError(f"{data}: neither a data set of ours ({', '.join(NAMES)}) nor a folder")
    if idx.find(folder, idx.FILES["train"][0]) is not None:
        return idx.read_idx_set(folder, part, spec, ())
    if idx.find(folder, npz.FILES["train"]) is not None:
        return npz.read_npz(folder / npz.FILES[part], spec)
    inside = folder / part
    return read_folder(inside if inside.is_dir() else folder, spec)
