"""The recipes that `auto` races, by what the folder is for; each begins with one that ends soon."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from training import recipe as recipes
from training.auto.look import Found
from training.data.splits import list_training_part
from training.networks.autoencoder import build
from training.recipe import Recipe

Size = Literal["small", "best"]
_FOLDS, _FEW_FOLDS = 5, 3  # of a given encoder; where each fold trains a network
_TINY, _DEALS = 200, 3  # images below which folds are dealt so many times
_LARGER = 288  # pixels, of pictures that have them
_THAWED = (  # benchmarks/backbones.py measures it
    *("transfer.mode=gradual", "transfer.begin=linear", "transfer.thaw=2", "transfer.views=5", "transfer.mixup=0.4"),
    *("transfer.augment.flip=across", "transfer.augment.crop=0.6", "transfer.freeze_norms=true", "transfer.batch=32"),
    *("transfer.optimiser=adamw", "transfer.weight_decay=0.01", "transfer.rate=1e-4", "transfer.slower_below=1"),
    *("transfer.ema=0.99", "transfer.epochs=8"),
)
_FEWEST_TO_THAW = 300  # images: of fewer, thawing gained nothing anywhere
_OWN_SIDES = (64, 96)
_OWN_EPOCHS = (8, 60)
_ENOUGH_VIEWS, _MOST_EPOCHS = 36_000, 300  # of fewer images more epochs, until so many were seen
_TRIED = 16  # images on which times are measured


@dataclass(frozen=True)
class Entry:
    """A recipe, and the seconds that it may take."""

    name: str
    what: str
    recipe: Recipe
    once: float = 0.0  # to encode the images
    each: float = 0.0  # fold, and the network that is published

    @property
    def folds(self) -> int:
        return max(1, self.recipe.split.folds * self.recipe.split.repeats)

    @property
    def seconds(self) -> float:
        return self.once + self.each * (self.folds + 1)


def to_classify(found: Found, name: str, *, size: Size, outside: bool, seconds: float) -> list[Entry]:
    """`seconds` is the whole budget: what would take far longer is listed too, and left out when its turn comes."""
    images = len(found.train)
    deals = _DEALS if images < _TINY else 1
    given = (f"split.folds={_FOLDS}", f"split.repeats={deals}")
    trained = (f"split.folds={_FEW_FOLDS}",)

    def of(base: str, *changes: str) -> Recipe:
        return recipes.load(base, [*_own_settings(found, name, base, images), *changes])

    if not outside:
        return _own(found, of, trained, seconds)
    frozen = of("photos", *given)
    encoding = _encoding_seconds()
    lite = images * encoding
    head = _head_seconds(images)
    entries = [
        Entry("frozen", "a linear head on EfficientNet-Lite0 with its ImageNet weights", frozen, once=lite, each=head)
    ]
    if size == "small":
        small = of("photos", *given, "input.height=128", "input.width=128", "network.stages=3")
        cut = Entry(
            "lower stages",
            "a linear head on EfficientNet-Lite0 up to its third stage, 128 pixels",
            small,
            once=0.2 * lite,
            each=head,
        )
        whole = of("photos", *given, "export.int8=true")
        entries = [
            cut,
            Entry("integers", "a linear head on EfficientNet-Lite0 in eight-bit integers", whole, once=lite, each=head),
        ]
        soft = () if found.train.several is None else ("transfer.soft=0",)  # a teacher's say is of one label each
        distilled = of("photos-small", *trained, *soft)
        taught = "the lower stages of EfficientNet-Lite0, taught by all of it"
        return [*entries, Entry("distilled", taught, distilled, each=lite * 25)]
    if found.short_side >= _LARGER:
        larger = of("photos", *given, f"input.short_side={_LARGER}")
        pixels = f"a linear head on EfficientNet-Lite0, at {_LARGER} pixels"
        taken = lite * (_LARGER / 224) ** 2
        entries.append(Entry("larger", pixels, larger, once=taken, each=head))
    if images >= _FEWEST_TO_THAW:
        thawed = of("photos", *trained, *_THAWED)
        entries.append(Entry("thawed", "EfficientNet-Lite0, whose upper blocks learn, too", thawed, each=lite * 25))
    return entries


def to_inspect(found: Found, name: str, *, size: Size, outside: bool) -> Recipe:
    base = "inspect-own" if not outside else "inspect-small" if size == "small" else "inspect"
    changes = [f"split.folds={_FOLDS}"]
    if found.sound is not None:
        changes.append(f"split.sound={recipes.in_toml(found.sound)}")
    usual = recipes.load(base, changes)
    images = len(list_training_part(found.data, usual.split, usual.seed))  # beside defects, some are held out
    changes.append(f"anomaly.folds={max(2, min(usual.anomaly.folds, images // 4))}")
    return recipes.load(base, [*_own_settings(found, name, base, images), *changes])


def _own(found: Found, of: Callable[..., Recipe], trained: tuple[str, ...], seconds: float) -> list[Entry]:
    images, entries = len(found.train), []
    untrained = of("defects", "transfer.mode=scratch", "decoder.epochs=0", *trained, "transfer.epochs=2", *_sided(64))
    for side in _OWN_SIDES:
        step = _training_seconds(untrained, side)
        networks = _FEW_FOLDS + 1
        # Two views of an image in pretraining cost twice a labelled one.
        epochs = int(0.8 * seconds / len(_OWN_SIDES) / (networks * images * step * 3))
        least, most = _OWN_EPOCHS
        epochs = max(least, min(epochs, max(most, min(_MOST_EPOCHS, _ENOUGH_VIEWS // images))))
        changes = (f"pretrain.epochs={epochs}", f"transfer.epochs={epochs}", "decoder.epochs=0", *_sided(side))
        own = of("defects", *trained, *_batches(images), *changes)
        taken = images * step * 3 * epochs
        entries.append(
            Entry(f"own, {side} pixels", f"a network of {side} pixels, trained on these images", own, each=taken)
        )
    return entries


def _batches(images: int) -> tuple[str, str]:
    """Of few images small ones, or an epoch is a step or two."""
    return f"pretrain.batch={min(128, max(16, images // 4))}", f"transfer.batch={min(32, max(8, images // 8))}"


def _own_settings(found: Found, name: str, base: str, images: int) -> list[str]:
    """What every recipe for a folder sets; so many images are learnt from."""
    rate = max(0.05, math.ceil(1000 / (images + 1)) / 1000)  # what so few images can bear
    words = {"name": name, "source": found.data, "target": found.data, "title": _title(found, base)}
    return [*(f"{field}={recipes.in_toml(text)}" for field, text in words.items()), f"false_alarm_rate={rate}"]


def _sided(side: int) -> tuple[str, ...]:
    return (
        *(f"input.height={side}", f"input.width={side}", "input.channels=auto", "precision=auto"),
        'anomaly.distances=["embedding.mahalanobis"]',
    )


def _title(found: Found, base: str) -> str:
    ways = {"photos-small": "classes", "photos": "classes", "defects": "classes"}
    return f"{Path(found.data).resolve().name}: {ways.get(base, 'inspection')}"


def _encoding_seconds() -> float:
    """Of one image by Lite0 at 224 pixels, roughly: by torch, which takes longer than onnxruntime will."""
    net = build(recipes.Network(backbone="efficientnet-lite0", weights=None), (224, 224, 3))
    images = torch.zeros(_TRIED, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        net.encoder.eval()(images[:2])
        began = time.monotonic()
        net.encoder(images)
    return (time.monotonic() - began) / _TRIED / 2


def _training_seconds(recipe: Recipe, side: int) -> float:
    """Of one image in a step of training, roughly."""
    net = build(recipe.network, (side, side, 3))
    images = torch.zeros(_TRIED, 3, side, side).contiguous(memory_format=torch.channels_last)
    taken = []
    for _ in range(3):
        began = time.monotonic()
        net.encoder(images).code.sum().backward()
        taken.append(time.monotonic() - began)
    return float(np.median(taken)) / _TRIED * 1.5


def _head_seconds(images: int) -> float:
    """Of a linear head with its cross-validation."""
    return 1 + images / 100
