"""Choosing the bundle whose encoder shots are grafted onto: the one given, or the nearest of several. No torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle import Bundle, GraftError, Manifest, load
from app.bundle.manifest import MANIFEST_FILE
from app.bundle.store import names, versions
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.measure.outputs import outputs_of
from training.progress import say
from training.shots import tasks
from training.shots.images import read_shots

MADE_BY = "graft"  # the key in the recipe of a bundle made from shots


@dataclass(frozen=True)
class Shots:
    """The images as a base takes them, and its encoder's outputs for them."""

    base: Bundle
    folder: Path  # the base's
    images: ImageSet
    encoded: dict[str, np.ndarray]  # (N, D) by tensor


def choose(shots: Path, base: Path) -> Shots:
    """The given bundle; of several the one to whose own images the shots lie nearest, in its own code space."""
    found = bundles_in(base)
    if len(found) == 1:
        return _encoded(shots, found[0], load(found[0]))
    candidates = list[tuple[float, Shots]]()
    for folder in found:
        try:
            bundle = load(folder)
        except GraftError as error:
            say(f"passed over: {error}")
            continue
        if is_grafted(bundle.manifest) or bundle.drift is None:
            say(f"passed over: {called(bundle)} has no embeddings of its own images to compare with")
            continue
        candidate = _encoded(shots, folder, bundle)
        candidates.append((tasks.distance(candidate.encoded["embedding"], bundle.drift.embeddings), candidate))
    if not candidates:
        raise TrainingError(
            f"--base {base}: none of its bundles has embeddings to compare with; name one, as in models/NAME/1"
        )
    nearest = min(candidates, key=lambda each: each[0])[1]
    distances = ", ".join(f"{called(each.base)} {distance:.2f}" for distance, each in candidates)
    say(f"base: {called(nearest.base)}, whose images lie nearest to these (distances: {distances})")
    return nearest


def _encoded(shots: Path, folder: Path, bundle: Bundle) -> Shots:
    images = read_shots(shots, bundle.manifest.input)
    return Shots(bundle, folder, images, outputs_of(bundle, images, "encode", ("embedding", "features")).encoded)


def bundles_in(base: Path) -> list[Path]:
    """The bundles at a path: the path itself, the newest version of models/NAME, or of each name in models."""
    if (base / MANIFEST_FILE).is_file():
        return [base.resolve()]
    if not base.is_dir():
        raise TrainingError(f"--base {base}: no such path; give a bundle, as in models/NAME/1, or a folder of bundles")
    homes = [base] if versions(base) else [base / name for name in names(base) if versions(base / name)]
    if not homes:
        raise TrainingError(f"--base {base}: no bundle in it; give one, as in models/NAME/1, or a folder of bundles")
    return [(home / str(versions(home)[-1])).resolve() for home in homes]


def called(bundle: Bundle) -> str:
    return f"{bundle.name}@{bundle.version}"


def is_grafted(manifest: Manifest) -> bool:
    return manifest.provenance.recipe.startswith(f'{{"{MADE_BY}": ')
