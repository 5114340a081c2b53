"""Which model is nearest to a task: by task embeddings, the means of images' codes. No torch."""

import numpy as np

_SMALLEST = 1e-12


def distance(codes: np.ndarray, known: np.ndarray) -> float:
    """How far (N, D) codes lie from a model's own (M, D): mean from mean, in units of the spread of its own.

    Every model has a space to itself; measured by what fills it, the distances of several can be compared.
    """
    middle = known.mean(axis=0)
    spread = float(np.sqrt(np.square(known - middle).sum(axis=1).mean()))
    return float(np.linalg.norm(codes.mean(axis=0) - middle)) / max(spread, _SMALLEST)
