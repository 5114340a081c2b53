"""A published backbone that a small network learns from."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.imageset import ImageSet
from training.data.material import Material
from training.data.storage import Rows
from training.learning.inference import Reader
from training.measure.probes import Probe
from training.networks.autoencoder import build
from training.recipe import DistilMode, Network


class Enlarged(nn.Module):
    """uint8 (N, H, W, C) → the backbone's code of the images, enlarged until their shorter side has `side` pixels."""

    def __init__(self, encoder: nn.Module, shape: tuple[int, int, int], side: int) -> None:
        super().__init__()
        scale = max(1.0, side / min(shape[:2]))
        self.encoder, self.sides = encoder, (round(scale * shape[0]), round(scale * shape[1]))

    def forward(self, image: Tensor) -> Tensor:
        image = image.permute(0, 3, 1, 2).float() / 255
        if self.sides != tuple(image.shape[2:]):
            image = F.interpolate(image, size=self.sides, mode="bilinear", align_corners=False)
        return self.encoder(image).code  # type: ignore[no-any-return]


@lru_cache(maxsize=1)  # a run reads several sets, in several stages, through one teacher
def _reader(network: Network, side: int, shape: tuple[int, int, int], device: torch.device) -> Reader:
    with torch.random.fork_rng():  # a network draws weights before it loads others
        encoder = build(network, shape).encoder
    return Reader(Enlarged(encoder, shape, side), shape, device)


class Teacher:
    def __init__(self, mode: DistilMode, device: torch.device) -> None:
        self._mode, self._device = mode, device

    def features(self, images: np.ndarray | Rows) -> np.ndarray:
        """(N, D) float32."""
        reader = _reader(self._mode.teacher_network, self._mode.teacher_side, images.shape[1:], self._device)
        return reader(images, "teacher")

    def predictions(self, train: ImageSet) -> np.ndarray:
        """(N, classes): what a linear head on the features, fitted to the labels of these images, says of them."""
        points = self.features(train.images)
        return self._head(train, points).probabilities(points)

    def accuracy(self, material: Material) -> float:
        """On the test images, of a linear head that was fitted to the training images."""
        head = self._head(material.train, self.features(material.train.images))
        return head.accuracy(self.features(material.test.images), material.test.labels)

    @staticmethod
    def _head(train: ImageSet, points: np.ndarray) -> Probe:
        return Probe(points, train.labels, len(train.classes))
