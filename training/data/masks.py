"""Where images have defects, at the size of the encoder's input. Masks are read one by one, when they are needed."""

import numpy as np

from app.bundle import ImageError, InputSpec
from app.bundle.decode import read_dimensions
from app.bundle.masks import decode_mask, place_image, place_mask
from app.bundle.regions import label_regions
from training.data.imageset import ImageSet, Mask
from training.errors import TrainingError, printable
from training.recipe import Input

_ANY = Input(height=1 << 15, width=1 << 15, filter="box").spec()  # a mask is read in its own size


def open_mask(mask: Mask) -> np.ndarray:
    """(h, w) bool, in the mask's own size."""
    assert mask.file is not None
    try:
        return decode_mask(mask.file.read_bytes(), _ANY)
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainingError(f"{printable(str(mask.file))} ({reason})") from None


def are_known(data: ImageSet) -> np.ndarray:
    """(N,) bool: sound images, which have no defect anywhere, and images with a mask."""
    masked = np.array([mask.file is not None for mask in data.masks] or [False] * len(data), bool)
    return np.asarray(~data.defective | masked)


def placed(data: ImageSet, index: int, spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) of an image whose mask is known: the number of each defect from 1, or 0; and where the image lies, bool.

    Defects are the regions of the mask in its own size: shrinking does not cut a thin one into several.
    """
    if not data.masks:
        return np.zeros(spec.shape[:2], np.int32), np.ones(spec.shape[:2], bool)
    mask = data.masks[index]
    try:
        height, width, _ = read_dimensions(mask.image)
    except ImageError as error:
        raise TrainingError(f"{printable(str(mask.image))} ({error})") from None
    image = place_image(height, width, spec)
    if mask.file is None or not data.defective[index]:
        return np.zeros(image.shape, np.int32), image
    return place_mask(label_regions(open_mask(mask))[0], height, width, spec), image
