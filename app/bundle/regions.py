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
    touch are joined: all at once, as a map of noise has hundreds of thousands.
    """
    rows, starts, ends = _runs(mask)
    one, other = _touching(rows, starts, ends, mask.shape[1])
    parent = np.arange(len(rows))  # of each run the first that is known to be of its region
    while True:
        first, second = parent[one], parent[other]
        apart = first != second
        if not apart.any():
            break
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(first, second)[apart], np.minimum(first, second)[apart])
        while (parent[parent] != parent).any():
            parent = parent[parent]
    found, number = np.unique(parent, return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(number.ravel() + 1, ends - starts)  # runs are in the order of their pixels
    return labels, len(found)


def _touching(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(run, run of the row above) for every two that touch, corners included."""
    row = width + 2  # of one number for row and column, so that all rows are searched at once
    first = np.searchsorted(rows * row + ends, (rows - 1) * row + starts)  # the first that does not end before it
    last = np.searchsorted(rows * row + starts, (rows - 1) * row + ends, side="right")
    count = np.maximum(last - first, 0)
    one = np.repeat(np.arange(len(rows)), count)
    return one, np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, first column, column behind the last) of each run of True, row by row."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return rows, starts, ends
