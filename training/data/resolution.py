"""What a recipe leaves to the images: the input's height, width and channels, and the colour of its bars.

Decided once, by the training images of the target, before they are decoded at that size. Sizes come from the files'
metadata; a few images are decoded small, where colours are asked for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle import ImageError, preprocess, preprocess_pixels
from app.bundle.decode import Dimensions, read_dimensions
from training.data.imageset import ImageSet
from training.data.splits import list_training_part
from training.errors import TrainingError, listed, printable
from training.progress import say
from training.recipe import Input, Recipe, Split

STEP = 32  # pixels; deep networks halve the sides five times
MOST_ENLARGED = 4  # times: more pixels of a small image hold no more
MOST_ASPECT = 4  # of the input, either way
_MEASURED = 2000  # images whose metadata are read
_DECODED = 256  # images whose colours are looked at
_SIDE = 64  # pixels, at which they are
_SHRUNK = 4  # times smaller: what is lost then is said

Image = Path | np.ndarray  # a file, or pixels (H, W) or (H, W, C)
Examined = list[tuple[Image, Dimensions]]  # never empty


@dataclass(frozen=True)
class Measured:
    """Medians over training images."""

    short_side: float  # pixels
    aspect: float  # width / height
    images: int


def settled(recipe: Recipe) -> Recipe:
    """The recipe with values where its input says auto or mean."""
    left_open = recipe.input.left_open
    if not left_open:
        return recipe
    where = printable(recipe.target)
    some = examined(list_training_part(recipe.target, recipe.split, recipe.seed), where)
    chosen = choose(recipe.input, some, where)
    values = ", ".join(f"input.{name}={getattr(chosen, name)}" for name in left_open)
    say(f"{where}: its training images decide {values}")
    return recipe.with_parts(input=chosen)


def in_words(data: str, rules: Split) -> str:
    """What auto would decide for a data set."""
    where = printable(data)
    some = examined(list_training_part(data, rules, seed=0), where)
    median = measure([dimensions for _, dimensions in some])
    chosen = choose(Input(height="auto", width="auto", channels="auto"), some, where)
    shrunk = median.short_side / min(chosen.height, chosen.width)  # type: ignore[operator]
    lost = f"; of it each pixel holds {shrunk:.0f} × {shrunk:.0f}: for small defects set input.tiles=512"
    return (
        f"input.height=auto, width=auto, channels=auto: {chosen.height}, {chosen.width}, {chosen.channels}; the median "
        f"image is {median.short_side:g} pixels on its shorter side, and {median.aspect:.2f} times as wide as high"
        + (lost if shrunk >= _SHRUNK else "")
    )


def choose(asked: Input, some: Examined, where: str) -> Input:
    """`where` begins a message."""
    height, width = sides(asked, measure([dimensions for _, dimensions in some]))
    channels = asked.channels
    if channels == "auto":
        coloured = [image for image, dimensions in some if not dimensions.grey][:_DECODED]
        channels = 1 if _are_grey(_thumbnails(coloured, asked, 3)) else 3
    padding = asked.padding
    if padding == "mean":
        padding = _mean_colour(_thumbnails([image for image, _ in some][:_DECODED], asked, channels), where)
    return asked.model_copy(update={"height": height, "width": width, "channels": channels, "padding": padding})


def measure(dimensions: Sequence[Dimensions]) -> Measured:
    heights, widths = np.array([each[:2] for each in dimensions], np.float64).T
    # Of the logarithm: as many upright images as lying ones make a square.
    aspect = math.exp(float(np.median(np.log(widths / heights))))
    return Measured(float(np.median(np.minimum(heights, widths))), aspect, len(dimensions))


def sides(asked: Input, median: Measured) -> tuple[int, int]:
    """(height, width). A side that is a number stays; the other follows by the aspect."""
    height, width = asked.height, asked.width
    if height == "auto" and width == "auto":
        most = min(asked.short_side, MOST_ENLARGED * median.short_side)
        short = max(STEP, STEP * math.floor(most / STEP))
        if median.aspect < 1:
            return _other_side(short, 1 / median.aspect), short
        height = short
    if width == "auto":
        assert height != "auto"
        width = _other_side(height, median.aspect)
    elif height == "auto":
        height = _other_side(width, 1 / median.aspect)
    return height, width


def _other_side(side: int, times: float) -> int:
    times = min(MOST_ASPECT, max(1 / MOST_ASPECT, times))
    return max(STEP, STEP * math.floor(side * times / STEP + 0.5))


def examined(training: ImageSet, where: str) -> Examined:
    """Some images of a listed set (see ImageSet), in a random order that is always the same."""
    some = []
    for index in np.random.default_rng(0).permutation(len(training))[:_MEASURED]:
        image = training.images[index]
        try:
            some.append((image, read_dimensions(image) if isinstance(image, Path) else _dimensions_of(image)))
        except ImageError:
            continue  # named when all are decoded
    if not some:
        names = listed([image.name for image in training.images if isinstance(image, Path)])
        raise TrainingError(f"{where}: no image can be read ({names}): repair or replace them")
    return some


def _dimensions_of(pixels: np.ndarray) -> Dimensions:
    height, width = pixels.shape[:2]
    return Dimensions(height, width, grey=pixels.ndim == 2 or pixels.shape[2] == 1)


def _thumbnails(images: Sequence[Image], asked: Input, channels: int) -> Iterator[np.ndarray]:
    """(64, 64, C) uint8 of each image that can be decoded."""
    small = {
        "height": _SIDE,
        "width": _SIDE,
        "channels": channels,
        "resize": "stretch",
        "padding": "background",
        "tiles": None,
    }
    spec = asked.model_copy(update=small).spec()
    for image in images:
        try:
            yield preprocess(image.read_bytes(), spec) if isinstance(image, Path) else preprocess_pixels(image, spec)
        except (ImageError, OSError):
            continue  # named when all are decoded


def _are_grey(thumbnails: Iterator[np.ndarray]) -> bool:
    return all((each == each[..., :1]).all() for each in thumbnails)


def _mean_colour(thumbnails: Iterator[np.ndarray], where: str) -> tuple[int, ...]:
    means = [each.mean(axis=(0, 1)) for each in thumbnails]
    if not means:
        raise TrainingError(f"{where}: no image can be decoded: input.padding=mean has nothing to go by")
    colour: list[int] = np.rint(np.mean(means, axis=0)).astype(int).tolist()
    return tuple(colour)
