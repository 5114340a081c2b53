"""Regions: the connected parts of an anomaly map above a threshold, in the picture's own pixels.

The threshold is a quantile of the largest values of sound images' maps, as the score's is one of scores: of sound
images, no more than the stated share has any region.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from app.bundle.manifest import InputSpec
from app.bundle.preprocess import placement
from app.bundle.scoring import numbers, p_values

PEAKS = "patches.peaks"  # array of the reference file: the largest value of each sound image's map, ascending
MOST = 100  # regions of an image, the highest first: a map may have thousands


Box = tuple[float, float, float, float]  # left, top, right, bottom, in the upright picture's pixels


class Size(NamedTuple):
    """Of an upright picture."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Region:
    box: Box
    area: float  # in square pixels of the picture
    score: float  # the map's largest value in it
    p_value: float  # share of sound images, and this one, whose maps reach as high


def peaks_of(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """From a reference file's arrays, if they are there; a ValueError says what is wrong with them."""
    if PEAKS not in arrays:
        return None
    peaks = numbers(arrays, PEAKS, (None,))
    if not len(peaks) or (np.diff(peaks) < 0).any():
        raise ValueError(f"array {PEAKS}: empty, or not sorted in ascending order")
    return peaks


def find(map_: np.ndarray, threshold: float, peaks: np.ndarray, spec: InputSpec, size: Size) -> list[Region]:
    """Of a map (H, W) of the encoder's input, or of a picture in tiles. `peaks` are those of sound images."""
    labels, count = label_regions(map_ > threshold)
    if not count:
        return []
    (left, top, right, bottom), (columns, rows), (x, y) = placement(*size, spec)
    across, down = (right - left) / columns, (bottom - top) / rows  # pixels of the picture for one of the input
    highest = np.zeros(count + 1, np.float32)
    np.maximum.at(highest, labels, map_)
    picture = labels[y : y + rows, x : x + columns]  # without the bars of pad
    all_y, all_x = np.nonzero(picture)
    owner = picture[all_y, all_x]
    found = []
    for number in 1 + np.argsort(-highest[1:], kind="stable")[:MOST]:
        own = owner == number
        if not own.any():  # it lies on the bars
            continue
        at_y, at_x = all_y[own], all_x[own]
        box = (
            left + float(at_x.min()) * across,
            top + float(at_y.min()) * down,
            min(left + float(at_x.max() + 1) * across, size.width),
            min(top + float(at_y.max() + 1) * down, size.height),
        )
        score = highest[number]
        found.append(Region(box, len(at_y) * across * down, float(score), float(p_values(score, peaks))))
    return found


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
