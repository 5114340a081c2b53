"""Which model is nearest to a task: by task embeddings, the means of images' codes. No torch."""

from pathlib import Path

import numpy as np

from app.bundle.manifest import MANIFEST_FILE
from app.bundle.store import names, versions
from training.errors import TrainingError

_SMALLEST = 1e-12


def distance(codes: np.ndarray, known: np.ndarray) -> float:
    """How far (N, D) codes lie from a model's own (M, D): mean from mean, in units of the spread of its own.

    Every model has a space to itself; measured by what fills it, the distances of several can be compared.
    """
    middle = known.mean(axis=0)
    spread = float(np.sqrt(np.square(known - middle).sum(axis=1).mean()))
    return float(np.linalg.norm(codes.mean(axis=0) - middle)) / max(spread, _SMALLEST)


def bundles_in(base: Path) -> list[Path]:
    """The bundles that a path stands for: itself, the newest of models/NAME, or the newest of each name in models."""
    if (base / MANIFEST_FILE).is_file():
        return [base.resolve()]
    if not base.is_dir():
        raise TrainingError(f"--base {base}: not there; give a bundle, as in models/NAME/1, or a folder of bundles")
    homes = [base] if versions(base) else [base / name for name in names(base) if versions(base / name)]
    if not homes:
        raise TrainingError(f"--base {base}: no bundle in it; give one, as in models/NAME/1, or a folder of bundles")
    return [(home / str(versions(home)[-1])).resolve() for home in homes]
