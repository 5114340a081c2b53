"""The 1,797 handwritten digits of 8×8 pixels that come with scikit-learn: other writers and scanner than MNIST's.

Only its file is read, `digits.csv.gz`, from the data set's own folder or from an installed scikit-learn, which is not
imported: 64 values of 0…16 and a label in each line.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from training.errors import TrainingError

NAME = "digits"
_FILE = "digits.csv.gz"
_SIDE, _WHITE = 8, 16


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """((N, 8, 8) uint8 in 0…255, (N,) int64)."""
    path = _found(folder)
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from None
    if table.shape[1] != _SIDE**2 + 1 or table.min() < 0 or table[:, :-1].max() > _WHITE or table[:, -1].max() > 9:
        raise TrainingError(f"{path}: lines of {_SIDE**2} values of 0 to {_WHITE} and a digit are expected")
    pixels = np.rint(table[:, :-1] * (255 / _WHITE)).astype(np.uint8)
    return pixels.reshape(-1, _SIDE, _SIDE), table[:, -1].astype(np.int64)


def _found(folder: Path) -> Path:
    if (folder / _FILE).is_file():
        return folder / _FILE
    package = importlib.util.find_spec("sklearn")
    for place in (package.submodule_search_locations or ()) if package else ():
        path = Path(place) / "datasets" / "data" / _FILE
        if path.is_file():
            return path
    raise TrainingError(
        f"{NAME}: they come with scikit-learn, which is not installed: pip install scikit-learn, "
        f"or put its {_FILE} into {folder}"
    )
