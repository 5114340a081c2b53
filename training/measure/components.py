"""Principal components: main directions of points, and the linear autoencoder that they form."""

import numpy as np

from training.data.imageset import ImageSet
from training.data.storage import chunks

_MOST_VALUES = 20_000_000  # of the images that the components are fitted on: 80 MB as float32


def main_directions(centred: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) → (rank,) variances in falling order, (D, rank) orthonormal directions; by the smaller Gram matrix."""
    count, size = centred.shape
    if size <= count:
        values, vectors = np.linalg.eigh(centred.T @ centred / count)
        return values[::-1][:rank], vectors[:, ::-1][:, :rank]
    values, vectors = np.linalg.eigh(centred @ centred.T / count)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    return values, np.linalg.qr(centred.T @ vectors)[0]


def reconstruction_mse(train: ImageSet, test: ImageSet, rank: int) -> float:
    """Mean squared error on the test images of `rank` principal components of the training images, in units of 0…1.

    With `rank` the size of an autoencoder's code, the network must beat it to be more than a linear projection.
    """
    size = int(np.prod(train.images.shape[1:]))
    some = np.random.default_rng(0).permutation(len(train))[: max(rank, _MOST_VALUES // size)]
    seen = _flat(train.images[np.sort(some)])
    mean = seen.mean(axis=0)
    _, basis = main_directions(seen - mean, min(rank, *seen.shape))
    total = 0.0
    for part in chunks(test.images):
        centred = _flat(part) - mean
        total += float(np.square(centred - centred @ basis @ basis.T).sum(dtype=np.float64))
    return total / (len(test) * size)


def _flat(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 → (N, D) in 0…1."""
    return images.reshape(len(images), -1).astype(np.float32) / 255
