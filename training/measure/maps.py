"""A map of each image, of where it is anomalous: what the served heatmap shows."""

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP
from app.bundle.scoring import error_maps
from training.data.imageset import ImageSet
from training.data.storage import allocate
from training.measure import tiled
from training.progress import track

_BATCH = 16


def has_maps(bundle: Bundle) -> bool:
    return bundle.decoder is not None or _reads_patches(bundle)


def anomaly_maps(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 → (N, H, W) float32, higher where it is more anomalous.

    The distances of patches, where the score reads them; else the error of the reconstruction.
    """
    if _reads_patches(bundle):
        return bundle.place(bundle.measure_patches(bundle.encode(images, patches=True))[ANOMALY_MAP])
    return error_maps(images, bundle.reconstruct(bundle.encode(images)))


def _reads_patches(bundle: Bundle) -> bool:
    return bundle.patches is not None and (bundle.scorer is None or bundle.scorer.reads_patches)


def highest(maps: np.ndarray | tiled.Maps) -> np.ndarray:
    """(N,) the largest value of each map."""
    return np.asarray(maps.max(axis=(1, 2)) if isinstance(maps, np.ndarray) else [map_.max() for map_ in maps])


def maps_of(bundle: Bundle, data: ImageSet, label: str) -> np.ndarray | tiled.Maps:
    """(N, H, W) float32, in a file where they are larger than memory; of pictures in tiles (h, w) each. `label` names
    the progress bar."""
    if bundle.tiled:
        return tiled.measured(bundle, data, label).maps
    height, width, _ = bundle.manifest.input.shape
    maps = allocate((len(data), height, width), np.float32)
    starts = range(0, len(data), _BATCH)
    for start in track(starts, label, len(starts)):
        part = slice(start, start + _BATCH)
        maps[part] = anomaly_maps(bundle, data.images[part])
    return maps
