"""The reference file of a bundle: arrays for its anomaly score, drift and latent map."""

import io

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


def arrays_of(file: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(file), allow_pickle=False) as stored:
        return dict(stored)
