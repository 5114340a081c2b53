"""The distance between two domains, as images and as embeddings: the discrepancy that drift uses. No torch."""

from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.drift import EMBEDDINGS, FEWEST, REFERENCES, DriftReference
from training.data.imageset import ImageSet
from training.measure.outputs import outputs_of

_LOOKS = {"thumbnail": "as images (thumbnails)", "embedding": "as codes"}  # before the encoder, and after it


@dataclass(frozen=True)
class Distance:
    what: str
    squared: float  # maximum mean discrepancy
    by_chance: float  # 95th percentile for samples of the target alone
    p_value: float


def distances(bundle: Bundle, source: ImageSet, target: ImageSet) -> list[Distance]:
    """Give it images that nothing was trained on; with too few of them the list is empty."""
    count = min(REFERENCES, len(target), 2 * len(source))
    if count < FEWEST:
        return []
    targets, sources = (
        outputs_of(bundle, _some(part, most), "domains", tuple(_LOOKS)).encoded
        for part, most in ((target, count), (source, count // 2))
    )
    found = []
    for tensor, what in _LOOKS.items():
        reference = DriftReference({EMBEDDINGS: targets[tensor]}, targets[tensor].shape[1])
        squared, p_value = reference.discrepancy(sources[tensor][: reference.window])
        found.append(Distance(what, squared, reference.by_chance(0.95), p_value))
    return found


def words(found: list[Distance], source: str, target: str) -> list[str]:
    if not found:
        return []
    images, codes = found
    nearer = "nearer to each other" if codes.squared < images.squared else "no nearer to each other"
    significant = "is" if codes.p_value <= 0.05 else "is not"
    return [
        f"The embeddings of {source} and {target} lie {nearer} than the images do (squared discrepancy "
        f"{codes.squared:.3f} against {images.squared:.3f}); the difference {significant} significant "
        f"(p {codes.p_value:.3f})."
    ]


def _some(data: ImageSet, count: int) -> ImageSet:
    return data.take(np.sort(np.random.default_rng(0).permutation(len(data))[:count]))
