"""The reference file of a bundle: arrays for its anomaly score, drift and latent map."""

import io
from collections.abc import Collection

import numpy as np

FILE = "reference.npz"


def to_bytes(arrays: dict[str, np.ndarray], compressed: bool = True) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def with_arrays(file: bytes, arrays: dict[str, np.ndarray]) -> bytes:
    """The same file with more arrays in it."""
    return to_bytes({**arrays_of(file), **arrays})


def without(file: bytes, names: Collection[str]) -> bytes:
    """The same file without these arrays."""
    return to_bytes({name: array for name, array in arrays_of(file).items() if name not in names})


def arrays_of(file: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(file), allow_pickle=False) as stored:
        return dict(stored)
