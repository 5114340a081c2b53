"""An index of example images: those nearest to an embedding, with their labels, file names and thumbnails.

The bundle's index file holds arrays:

    mean (D,), basis (D, K)   an embedding's code is (embedding - mean) · basis; its first numbers vary most
    codes (N, K) float16      of the examples
    labels (N,) int           index into `label_names`, -1 for none; absent where no example has a label
    label_names, files        UTF-8 text with a name on each line; `files` has N, and is absent if they are not files
    thumbnails, thumbnail_sizes (N,)   WebP files, one behind the other, and the bytes of each; absent without any

The search is exact. The distance by a code's first numbers alone bounds the whole distance from below, so that few
examples have to be compared by all of them.
"""

from dataclasses import dataclass

import numpy as np

from app.bundle.scoring import numbers

FILE = "index.npz"
MOST_FOUND = 20  # nearest examples that a search gives, at most
MOST_EXAMPLES = 100_000
_NONE = -1
_COMPARED_FIRST = 3 / 8  # share of a code's numbers
_BLOCK = 32  # examples; a power of two
_FEW = 4096  # examples that are compared by all numbers at once
_WORTH_IT = 8  # more candidates than an eighth take longer to gather than to compare all examples
_ROUNDING = 1e-4  # of the largest squared length: what float32 may be off


@dataclass(frozen=True)
class Example:
    label: str | None
    file: str | None
    thumbnail: bytes | None  # WebP


class Index:
    def __init__(self, arrays: dict[str, np.ndarray], embedding_size: int) -> None:
        """Raises ValueError naming the array that does not fit."""
        self._mean = numbers(arrays, "mean", (embedding_size,)).astype(np.float32)
        self._basis = numbers(arrays, "basis", (embedding_size, None)).astype(np.float32)
        codes = numbers(arrays, "codes", (None, self._basis.shape[1]))
        if not 1 <= len(codes) <= MOST_EXAMPLES:
            raise ValueError(f"array codes: must have 1 to {MOST_EXAMPLES:,} rows")
        self._count = len(codes)
        self._label_names = _lines(arrays, "label_names", None) or []
        self._labels = _labels(arrays, self._count, len(self._label_names))
        self._files = _lines(arrays, "files", self._count)
        self._thumbnails = _thumbnails(arrays, self._count)
        padding = -self._count % _BLOCK  # examples at an infinite distance, which no search finds
        self._codes = np.pad(codes.astype(np.float32), ((0, padding), (0, 0)))
        lengths = np.square(self._codes).sum(axis=1)
        self._rounding = _ROUNDING * float(lengths.max())
        lengths[self._count :] = np.inf
        first = max(1, round(_COMPARED_FIRST * self._codes.shape[1]))
        # (K + 1, N): [x, 1] times it is |code|² - 2 x · code.
        self._all = np.vstack([-2 * self._codes.T, lengths])
        self._first = np.vstack([-2 * self._codes[:, :first].T, np.square(self._codes[:, :first]).sum(axis=1)])
        self._first[-1, self._count :] = np.inf

    def __len__(self) -> int:
        return self._count

    @property
    def has_thumbnails(self) -> bool:
        return self._thumbnails is not None

    def nearest(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, D) → (n, k) rows and distances of the nearest examples, ascending; k is MOST_FOUND, or all there are."""
        points = (embeddings - self._mean) @ self._basis
        found = [self._nearest(point, min(MOST_FOUND, self._count)) for point in points.astype(np.float32)]
        return np.stack([rows for rows, _ in found]), np.stack([distances for _, distances in found])

    def _nearest(self, point: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._candidates(point, count)
        if rows is None:
            squared = np.append(point, np.float32(1)) @ self._all
            rows = np.argpartition(squared, count - 1)[:count]
        squared = np.square(self._codes[rows] - point).sum(axis=1)
        order = np.lexsort((rows, squared))[:count]
        return rows[order], np.sqrt(squared[order])

    def _candidates(self, point: np.ndarray, count: int) -> np.ndarray | None:
        """Rows that hold the nearest; None where all examples have to be compared."""
        if self._count <= _FEW:
            return None
        head = point[: len(self._first) - 1]
        bounds = np.append(head, np.float32(1)) @ self._first  # (N,), without |head|²
        blocks = bounds.reshape(_BLOCK, -1)
        columns = np.argpartition(blocks.min(axis=0), count - 1)[:count]
        near = blocks[:, columns].argmin(axis=0) * blocks.shape[1] + columns
        farthest = float(np.square(self._codes[near] - point).sum(axis=1).max())
        rows = np.flatnonzero(bounds <= farthest - float(head @ head) + self._rounding)
        return rows if len(rows) <= self._count // _WORTH_IT else None

    def example(self, row: int) -> Example:
        label = None if self._labels is None or self._labels[row] == _NONE else self._label_names[self._labels[row]]
        thumbnail = None
        if self._thumbnails is not None:
            data, ends = self._thumbnails
            thumbnail = data[ends[row] : ends[row + 1]].tobytes()
        return Example(label, None if self._files is None else self._files[row], thumbnail)


def text_of(names: list[str]) -> np.ndarray:
    """Names, each without a line break → the array that holds them."""
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def _lines(arrays: dict[str, np.ndarray], name: str, count: int | None) -> list[str] | None:
    array = arrays.get(name)
    if array is None:
        return None
    try:
        if array.dtype != np.uint8 or array.ndim != 1:
            raise ValueError("not bytes")
        lines = array.tobytes().decode().split("\n")
    except ValueError:
        raise ValueError(f"array {name}: must be UTF-8 text as uint8") from None
    if count is not None and len(lines) != count:
        raise ValueError(f"array {name}: has {len(lines):,} lines for {count:,} examples")
    return lines


def _labels(arrays: dict[str, np.ndarray], count: int, names: int) -> np.ndarray | None:
    labels = arrays.get("labels")
    if labels is None:
        return None
    if labels.dtype.kind != "i" or labels.shape != (count,) or not _NONE <= labels.min() <= labels.max() < names:
        raise ValueError("array labels: must hold the index of one of label_names, or -1, for each example")
    return labels


def _thumbnails(arrays: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(the files, where each begins and the last ends)."""
    data, sizes = arrays.get("thumbnails"), arrays.get("thumbnail_sizes")
    if data is None or sizes is None:
        return None
    fits = data.dtype == np.uint8 and data.ndim == 1 and sizes.dtype.kind == "i" and sizes.shape == (count,)
    if not fits or sizes.min() < 0 or sizes.sum(dtype=np.int64) != len(data):
        raise ValueError("array thumbnail_sizes: must add up to the bytes of thumbnails, one number for each example")
    return data, np.concatenate([[0], sizes.cumsum(dtype=np.int64)])
