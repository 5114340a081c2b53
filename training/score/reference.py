"""The reference file of a bundle: arrays for its anomaly score, drift and latent map."""

import io

import numpy as np

FILE = "reference.npz"


def to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def with_arrays(file: bytes, arrays: dict[str, np.ndarray]) -> bytes:
    """The same file with more arrays in it."""
    with np.load(io.BytesIO(file), allow_pickle=False) as stored:
        return to_bytes({**stored, **arrays})
