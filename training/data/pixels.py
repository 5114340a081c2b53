"""Decoded pixels of one size → the bundle's input, by the code that serving uses."""

import numpy as np

from app.bundle import InputSpec, preprocess_pixels
from training.data.storage import allocate
from training.progress import track


def to_input(spec: InputSpec | None, pixels: np.ndarray) -> np.ndarray:
    """(N, …) pixels of one size → (N, H, W, C), each as if it had come in a file; without a spec, as they are."""
    if spec is None:
        return pixels
    if pixels.shape[1:] == spec.shape or (*pixels.shape[1:], 1) == spec.shape:
        return pixels.reshape(len(pixels), *spec.shape)
    images = allocate((len(pixels), *spec.shape), np.uint8)
    for index, image in enumerate(track(pixels, "resize", len(pixels))):
        images[index] = preprocess_pixels(image, spec)
    return images
