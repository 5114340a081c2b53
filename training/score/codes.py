"""Codes of labelled images, by which `graft-train learn` fits a bundle's head again and judges it. No torch.

The bundle's file holds arrays:

    mean (D,), basis (D, K)   a code is (x - mean) · basis, x being what the head reads
    PART, PART_logits, PART_labels   of the parts `train` and `held_out`: codes (N, K) float16, logits of the exported
                                     head (N, labels), labels (N,)
"""

from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from training.data.imageset import ImageSet
from training.data.splits import split
from training.errors import TrainingError
from training.measure.outputs import outputs_of
from training.score import reference
from training.score.examples import DIRECTIONS, halved, projection

FILE = "codes.npz"


@dataclass(frozen=True)
class Part:
    codes: np.ndarray  # (N, K)
    logits: np.ndarray  # (N, labels)
    labels: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Part":
        return Part(self.codes[rows], self.logits[rows], self.labels[rows])


@dataclass(frozen=True)
class Codes:
    mean: np.ndarray  # (D,)
    basis: np.ndarray  # (D, K)
    train: Part
    held_out: Part

    def of(self, points: np.ndarray) -> np.ndarray:
        """(N, D) of what the head reads → (N, K)."""
        return np.asarray((points - self.mean) @ self.basis)


def codes(bundle: Bundle, train: ImageSet, held_out: ImageSet, most: int) -> dict[str, bytes]:
    """{the file's name: its content}, of at most so many images of each part; empty without one label an image."""
    graph = bundle.manifest.graphs.head
    if graph is None or not len(train.labels) or not len(held_out.labels) or not most:
        return {}
    tensor, arrays = graph.input.name, {}
    for name, images in (("train", train), ("held_out", held_out)):
        if len(images) > most:
            images = split(images, (most,), seed=0)[1]
        outputs = outputs_of(bundle, images, f"codes, {name}", (tensor, "logits"))
        assert outputs.logits is not None  # there is a head
        points = outputs.encoded[tensor]
        if name == "train":
            arrays["mean"], arrays["basis"] = projection(points, DIRECTIONS, tensor)
        found = (points - arrays["mean"]) @ arrays["basis"].astype(np.float32)
        arrays |= {name: halved(found, tensor), f"{name}_logits": outputs.logits, f"{name}_labels": images.labels}
    return {FILE: reference.to_bytes(arrays)}


def read(bundle: Bundle, file: bytes) -> Codes:
    try:
        arrays = reference.arrays_of(file)
        parts = [
            Part(arrays[name].astype(np.float32), arrays[f"{name}_logits"], arrays[f"{name}_labels"])
            for name in ("train", "held_out")
        ]
        return Codes(arrays["mean"], arrays["basis"].astype(np.float32), *parts)
    except (KeyError, ValueError) as error:
        raise TrainingError(f"{bundle.name}@{bundle.version}: {FILE} cannot be read: {error}") from None
