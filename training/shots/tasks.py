"""The distance between a task and a model: by task embeddings, the means of images' codes. No torch."""

import numpy as np

_SMALLEST = 1e-12


def distance(codes: np.ndarray, known: np.ndarray) -> float:
    """From (N, D) codes to a model's own (M, D): between the means, in units of the spread of its own codes.

    Every model has its own code space; in units of that spread, distances to several models can be compared.
    """
    middle = known.mean(axis=0)
    spread = float(np.sqrt(np.square(known - middle).sum(axis=1).mean()))
    return float(np.linalg.norm(codes.mean(axis=0) - middle)) / max(spread, _SMALLEST)
