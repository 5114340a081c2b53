"""Images over textures: |image − patch|, in the manner of MNIST-M (Ganin et al. 2016), patches from pictures of steel.

The patches are cut from the NEU surface pictures, a quarter of which give those of the test part alone: no texture that
is trained on is tested on. The same image has the same patch whenever it is read.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from app.bundle import ImageError, preprocess
from training.errors import TrainingError
from training.recipe import Input

FOLDER = "neu-surface"
SIDE = 200  # as they were published; patches of 28 pixels are cut from that
_SPEC = Input(height=SIDE, width=SIDE).spec()
_TESTED = 4  # one picture in so many
_SEEDS = {"train": 0, "test": 1}


def textured(pixels: np.ndarray, folder: Path, part: str) -> np.ndarray:
    """(N, H, W) uint8 → the same, each image's distance from a patch; `part` is train or test."""
    count, height, width = pixels.shape
    surfaces = _surfaces(folder, part)
    rng = np.random.default_rng(_SEEDS[part])
    which = rng.integers(len(surfaces), size=count)
    top, left = (rng.integers(SIDE - side + 1, size=count) for side in (height, width))
    patches = np.lib.stride_tricks.sliding_window_view(surfaces, (height, width), axis=(1, 2))[which, top, left]
    return np.asarray(np.abs(pixels.astype(np.int16) - patches).astype(np.uint8))


def _surfaces(folder: Path, part: str) -> np.ndarray:
    """(M, SIDE, SIDE) uint8: those pictures of the folder, and of the folders in it, that give the part's patches."""
    files = sorted(folder.rglob("*.jpg"))
    chosen = [path for number, path in enumerate(files) if (number % _TESTED == 0) == (part == "test")]
    if not chosen:
        raise TrainingError(
            f"{folder}: {len(files)} pictures (.jpg) to cut textures from, at least two are needed: put the NEU "
            "surface defect pictures there, or set GRAFT_DATA to the folder that holds theirs"
        )

    def read(path: Path) -> np.ndarray:
        try:
            return preprocess(path.read_bytes(), _SPEC)[..., 0]
        except (ImageError, OSError) as error:
            raise TrainingError(f"{path}: {error}") from None

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(read, chosen)))
