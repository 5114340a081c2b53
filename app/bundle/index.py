"""An index of example images: those nearest to an embedding, with their labels, file names and thumbnails.

The bundle's index file holds arrays:

    mean (D,), basis (D, K)   an embedding's code is (embedding - mean) · basis; its first numbers vary most
    codes (N, K) float16      of the examples
    labels (N,) int           index into `label_names`, -1 for none; absent where no example has a label
    label_names, files        UTF-8 text with a name on each line; `files` has N, and is absent if they are not files
    thumbnails, thumbnail_sizes (N,)   WebP files, one behind the other, and the bytes of each; absent without any

The search is exact. Of each block of rows that follow one another the least and the greatest of the codes' first
numbers are known; they bound the distance of the whole block from below, so that few blocks have to be compared. That
pays where the rows of a block are alike, as `in_blocks` puts them.
"""

from dataclasses import dataclass

import numpy as np

from app.bundle.scoring import numbers

FILE = "index.npz"
MOST_FOUND = 20  # nearest examples that a search gives, at most
MOST_EXAMPLES = 100_000
_NONE = -1
_BLOCK = 32  # rows
_BOUNDED = 16  # of a code's numbers
_FEW = 4096  # rows that are compared at once
_FIRST = 16  # blocks, the closest by their bounds; they hold MOST_FOUND
_WORTH_IT = 4  # more blocks than a quarter take longer to gather than to compare all rows
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
        padding = -self._count % _BLOCK  # rows at an infinite distance, which no search finds
        padded = np.pad(codes.astype(np.float32), ((0, padding), (0, 0)), mode="edge")
        lengths = np.square(padded).sum(axis=1)
        self._rounding = _ROUNDING * float(lengths.max())
        lengths[self._count :] = np.inf
        self._lengths = lengths.reshape(-1, _BLOCK)
        self._codes = padded.reshape(-1, _BLOCK, codes.shape[1])
        bounded = np.ascontiguousarray(self._codes[:, :, :_BOUNDED].T)  # (numbers, row of a block, block)
        self._least, self._greatest = bounded.min(axis=1), bounded.max(axis=1)

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
        blocks = None if self._count <= _FEW else self._blocks(point, count)
        chosen = slice(None) if blocks is None else blocks
        products = self._codes[chosen].reshape(-1, len(point)) @ point
        squared = self._lengths[chosen].ravel() - 2 * products
        found = np.argpartition(squared, count - 1)[:count]
        rows = found if blocks is None else blocks[found // _BLOCK] * _BLOCK + found % _BLOCK
        squared = np.square(self._codes.reshape(-1, len(point))[rows] - point).sum(axis=1)
        order = np.lexsort((rows, squared))
        return rows[order], np.sqrt(squared[order])

    def _blocks(self, point: np.ndarray, count: int) -> np.ndarray | None:
        """Those that hold the nearest; None where all have to be compared."""
        head = point[:_BOUNDED, None]
        outside = np.maximum(np.maximum(self._least - head, head - self._greatest), 0)
        bounds = np.square(outside).sum(axis=0)
        first = np.argpartition(bounds, _FIRST)[:_FIRST]
        squared = np.square(self._codes[first] - point).sum(axis=2)[np.isfinite(self._lengths[first])]
        blocks = np.flatnonzero(bounds <= np.partition(squared, count - 1)[count - 1] + self._rounding)
        return blocks if len(blocks) <= len(bounds) // _WORTH_IT else None

    def example(self, row: int) -> Example:
        label = None if self._labels is None or self._labels[row] == _NONE else self._label_names[self._labels[row]]
        thumbnail = None
        if self._thumbnails is not None:
            data, ends = self._thumbnails
            thumbnail = data[ends[row] : ends[row + 1]].tobytes()
        return Example(label, None if self._files is None else self._files[row], thumbnail)


def in_blocks(codes: np.ndarray) -> np.ndarray:
    """An order of the rows in which those that are alike share a block: halved by the number that varies most, again
    and again."""
    ordered, waiting = [], [np.arange(len(codes))]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= _BLOCK:
            ordered.append(rows)
            continue
        some = codes[rows].astype(np.float32)
        half = max(_BLOCK, len(rows) // 2 // _BLOCK * _BLOCK)
        halves = np.argpartition(some[:, some.var(axis=0).argmax()], half)
        waiting += [rows[halves[half:]], rows[halves[:half]]]
    return np.concatenate(ordered)


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
