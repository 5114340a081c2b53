"""A map's cells on coarser places, without loss. No torch."""

import numpy as np


def spread(cells: int, spans: int) -> np.ndarray:
    """(spans, cells): the share of each cell that lies in each of equal spans; columns sum to one."""
    cell, span = np.arange(cells), np.arange(spans)[:, None]
    low, high = np.maximum(span / spans, cell / cells), np.minimum((span + 1) / spans, (cell + 1) / cells)
    return np.asarray(np.maximum(high - low, 0) * cells, np.float32)
