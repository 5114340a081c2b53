"""Connected parts of a mask: the defects that a region measure counts one by one."""

import numpy as np


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(H, W) bool → (H, W) numbers from 1 of the regions, 0 beside them, and how many there are.

    Pixels that touch at a side or a corner belong together. Rows are cut into runs, and runs of neighbouring rows that
    touch are joined.
    """
    rows, starts, ends = _runs(mask)
    parent = np.arange(len(rows))

    def root(of: int) -> int:
        while parent[of] != of:
            parent[of] = parent[parent[of]]
            of = parent[of]
        return of

    first_of_row = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for row in np.unique(rows):
        if row == 0:
            continue
        above, above_end = first_of_row[row - 1], first_of_row[row]
        for run in range(first_of_row[row], first_of_row[row + 1]):
            while above < above_end and ends[above] < starts[run]:  # ends before this run, corners included
                above += 1
            touching = above
            while touching < above_end and starts[touching] <= ends[run]:
                parent[root(touching)] = root(run)
                touching += 1
    roots = np.array([root(run) for run in range(len(rows))], np.int64)
    found, number = np.unique(roots, return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    for row, start, end, own in zip(rows, starts, ends, number.ravel(), strict=True):
        labels[row, start:end] = own + 1
    return labels, len(found)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, first column, column behind the last) of each run of True, row by row."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return rows, starts, ends
