"""The pictures of docs/transfer.md, of drawn images alone: `python -m benchmarks.pictures [FOLDER]`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from app.bundle import Bundle, load
from app.bundle.drawings import samples
from app.bundle.encode import png
from benchmarks.home import ROOT
from training.report.charts import histogram_file

BUNDLE = ROOT / "models/fashion-mnist/1"
HIDDEN, PATCH = 0.3, 4  # as objective.mask of the recipe and training.learning.objectives have them
_ENLARGED, _GAP = 4, 12


def main(folder: Path) -> None:
    bundle = load(BUNDLE)
    Image.fromarray(_drawn_back(bundle)).save(folder / "transfer.png", optimize=True)
    (folder / "scores.svg").write_text(_scores(bundle))


def _drawn_back(bundle: Bundle) -> np.ndarray:
    """A column for each sample: as it is, with a third hidden, and drawn from the code of that."""
    whole = np.stack([bundle.preprocess(png(image)) for image in samples().values()])
    n, height, width, _ = whole.shape
    kept = np.random.default_rng(0).random((n, -(-height // PATCH), -(-width // PATCH), 1)) >= HIDDEN
    kept = kept.repeat(PATCH, axis=1).repeat(PATCH, axis=2)[:, :height, :width]
    hidden = whole * kept.astype(np.uint8)
    guessed = np.round(255 * bundle.reconstruct(bundle.encode(hidden))).astype(np.uint8)
    rows = [np.concatenate([_framed(image[..., 0]) for image in row], axis=1) for row in (whole, hidden, guessed)]
    return np.concatenate(rows)


def _framed(image: np.ndarray) -> np.ndarray:
    large = image.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)
    return np.pad(large, _GAP // 2, constant_values=255)


def _scores(bundle: Bundle) -> str:
    """The held-out normals' scores, and the threshold among them."""
    anomaly, scorer = bundle.manifest.anomaly, bundle.scorer
    assert anomaly is not None
    assert scorer is not None
    title = "Scores of held-out garments"
    return histogram_file(title, {"held out": scorer.calibration}, "anomaly score", anomaly.threshold)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs")
