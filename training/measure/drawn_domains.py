"""Out-of-distribution images drawn by code. No choice was based on them, and every score should call them anomalous."""

from collections.abc import Callable

import numpy as np

from app.bundle import Bundle
from training.data.imageset import ImageSet
from training.measure.detection import auroc
from training.measure.outputs import outputs_of

COUNT = 240  # of each domain


def drawn(shape: tuple[int, int, int], count: int = COUNT) -> dict[str, np.ndarray]:
    """(count, H, W, C) uint8 by domain; the same at every call."""
    rng = np.random.default_rng(0)
    textures = [_TEXTURES[number % len(_TEXTURES)](rng, shape) for number in range(count)]
    return {"noise": rng.integers(0, 256, (count, *shape), dtype=np.uint8), "drawn textures": np.stack(textures)}


def aurocs(bundle: Bundle, normal: np.ndarray) -> dict[str, float]:
    """AUROC by domain; `normal` (N,) are the scores of normal images."""
    found = {}
    for name, images in drawn(bundle.manifest.input.shape).items():
        scores = outputs_of(bundle, ImageSet(images, np.array([], np.int64), ()), name, ("scores",)).scores
        assert scores is not None  # the bundle has a score
        found[name] = auroc(normal, scores)
    return found


def _stripes(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """A grating: any direction, a period of a twelfth of the side to all of it."""
    height, width, _ = shape
    angle, waves, phase = rng.uniform(0, np.pi), 12 ** rng.uniform(), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return _coloured(rng, np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase), shape)


def _checks(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    height, width, _ = shape
    rows, columns = (np.arange(side) * rng.integers(2, 9) // side for side in (height, width))
    return _coloured(rng, ((rows[:, None] + columns) % 2) * 2.0 - 1, shape)


def _clouds(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Noise whose spectrum falls with the frequency, as that of surfaces does."""
    height, width, _ = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
    spectrum = np.fft.fft2(rng.normal(size=(height, width))) / np.maximum(frequency, 1) ** rng.uniform(0.5, 2)
    cloud = np.fft.ifft2(spectrum).real
    return _coloured(rng, (cloud - cloud.mean()) / (3 * cloud.std() + 1e-9), shape)


def _coloured(rng: np.random.Generator, pattern: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(H, W) in about -1…1 → (H, W, C) uint8 of any contrast and brightness, each channel its own."""
    low, high = np.sort(rng.uniform(0, 255, (2, shape[2])), axis=0)
    share: np.ndarray = np.clip(pattern, -1, 1)[..., None] / 2 + 0.5
    return np.asarray(np.rint(low + (high - low) * share).astype(np.uint8))


_TEXTURES: tuple[Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray], ...] = (_stripes, _checks, _clouds)
