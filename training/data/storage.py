"""Arrays that may be larger than memory: above a share of the free memory they lie in a temporary file."""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from app.bundle.container_limits import memory_left
from training import ranks
from training.errors import TrainingError

_SHARE = 0.4  # of the free memory for one array; the rest is for the network and its activations
_CHUNK = 1 << 26  # bytes read at a time when iterating over a whole array


class Rows:
    """Selected rows of an array, read on access: a subset of a memory-mapped set is not copied."""

    def __init__(self, array: "np.ndarray | Rows", rows: np.ndarray) -> None:
        self.array: np.ndarray = array.array if isinstance(array, Rows) else array
        self.rows: np.ndarray = array.rows[rows] if isinstance(array, Rows) else rows
        self.shape = (len(self.rows), *self.array.shape[1:])
        self.dtype = self.array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.array[self.rows[index]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def take(self, rows: np.ndarray) -> "Rows":
        return Rows(self, rows)

    def chunks(self) -> Iterator[np.ndarray]:
        """As the function of that name."""
        step = _step(self.shape, self.dtype)
        return (self[start : start + step] for start in range(0, len(self), step))


def take(array: np.ndarray | Rows, rows: np.ndarray) -> np.ndarray | Rows:
    """A copy of rows in memory, a view of rows in a file."""
    if isinstance(array, Rows):
        return array.take(rows)
    return Rows(array, rows) if isinstance(array, np.memmap) else array[rows]


def without(array: np.ndarray, rows: Collection[int]) -> np.ndarray | Rows:
    """The array without these rows: a view if it lies in a file; in memory moved up in place, without a copy."""
    kept = np.delete(np.arange(len(array)), sorted(rows))
    if isinstance(array, np.memmap) and rows:
        return Rows(array, kept)
    for to, row in enumerate(kept if rows else ()):
        array[to] = array[row]
    return array[: len(kept)]


def chunks(array: np.ndarray | Rows) -> Iterator[np.ndarray]:
    """The rows in order, in chunks of at most _CHUNK bytes."""
    if isinstance(array, Rows):
        return array.chunks()
    step = _step(array.shape, array.dtype)
    return (array[start : start + step] for start in range(0, len(array), step))


def _step(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return max(1, _CHUNK // max(1, int(np.prod(shape[1:])) * dtype.itemsize))


def allocate(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Uninitialised, in memory if it fits, else in a temporary file that is removed with the process."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= allowance():
        return np.empty(shape, dtype)
    with _file(shape, dtype) as file:
        return np.memmap(file, dtype, "r+", shape=shape)


@contextmanager
def shared(shape: tuple[int, ...], dtype: type[np.generic]) -> Iterator[np.ndarray]:
    """One array for all ranks of a machine. Each fills its part inside the `with`; after it the array is complete."""
    if ranks.count() == 1:
        yield allocate(shape, dtype)
        return
    place, _ = ranks.here()
    with _file(shape, dtype) if place == 0 else nullcontext() as file:
        # The file has no name: other ranks open it through /proc of the process that created it.
        made = ranks.of_all(f"/proc/{os.getpid()}/fd/{file.fileno()}" if file else "")
        array = np.memmap(made[ranks.rank() - place], dtype, "r+", shape=shape)
        ranks.of_all(None)
    yield array
    ranks.of_all(None)


@contextmanager
def _file(shape: tuple[int, ...], dtype: type[np.generic]) -> Iterator[IO[bytes]]:
    """A temporary file of that size, without a name."""
    size, folder = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize, tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(prefix="graft-", dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # fails here on a full disk, not at a later write
            yield file
    except OSError as error:
        raise TrainingError(
            f"{size / 1e9:.1f} GB of {np.dtype(dtype)} {shape} fit neither into memory nor into {folder} "
            f"({error.strerror}): set TMPDIR to a larger disk, or take smaller images"
        ) from None


def allowance() -> int:
    """Bytes that one array may take in memory: GRAFT_MEMORY_MB, or a share of the free memory."""
    given = os.environ.get("GRAFT_MEMORY_MB")
    if given is not None:
        try:
            return int(float(given) * 1e6)
        except ValueError:
            raise TrainingError(f"GRAFT_MEMORY_MB={given}: a number of megabytes is expected") from None
    left = memory_left()
    return int(_SHARE * (_free() if left is None else min(_free(), left)))


def _free() -> int:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
