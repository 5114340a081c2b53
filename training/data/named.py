"""Named data sets: their folders, their classes, and how each is read."""

import os
from functools import partial
from pathlib import Path

from app.bundle import InputSpec
from training.data import digits, idx, textures
from training.data.imageset import ImageSet
from training.data.pixels import to_input
from training.errors import TrainingError

CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
TEXTURED = {f"{name}-textured": name for name in CLASSES}  # name → the plain set that it is made of when it is read
NAMES = (*CLASSES, *TEXTURED, digits.NAME)


def root() -> Path:
    """The folder of named data sets: GRAFT_DATA, or the user's cache."""
    given = os.environ.get("GRAFT_DATA")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft" / "data"


def is_missing(named: str) -> bool:
    return any(idx.find(root() / named, stem) is None for stems in idx.FILES.values() for stem in stems)


def read_named(name: str, part: str, spec: InputSpec | None) -> ImageSet:
    if name == digits.NAME:
        pixels, labels = digits.read(root() / name)
        return ImageSet(to_input(spec, pixels), labels, CLASSES["mnist"])
    plain = TEXTURED.get(name, name)
    folder = root() / plain
    if is_missing(plain):
        raise TrainingError(
            f"{plain}: its files are not in {folder}; `python -m training data {plain} --download` fetches them, "
            "or set GRAFT_DATA to the folder that holds them"
        )
    if name not in TEXTURED:
        return idx.read_idx_set(folder, part, spec, CLASSES[name])
    surfaces = root() / textures.FOLDER
    textured = partial(textures.textured, folder=surfaces, part=part)
    return idx.read_idx_set(folder, part, spec, classes=CLASSES[plain], changed=textured)
