"""The upper blocks of a backbone, trained on what the frozen blocks below gave: those run once for each image."""

import math

import numpy as np
import torch
from torch import Tensor

from training.data.imageset import ImageSet
from training.learning.inference import Reader
from training.learning.views import drawn_rows, with_views
from training.learning.workshop import Workshop
from training.networks.encoded import Backbone
from training.networks.graph import LowerGraph
from training.recipe import GradualMode


class Upper:
    def __init__(
        self, workshop: Workshop, start: int, transfer: GradualMode, train: ImageSet, validation: ImageSet
    ) -> None:
        """Blocks from number `start` on. Computes what those below give for all images, and views of them."""
        assert isinstance(workshop.net.encoder, Backbone)
        self._net, self._encoder, self._start, self._device = workshop.net, workshop.net.encoder, start, workshop.device
        self._features = transfer.reads == "features"
        lower = Reader(LowerGraph(workshop.net, start, self._features), train.images.shape[1:], workshop.device)
        images = with_views(workshop, [train.images], transfer.augment, transfer.views)
        self._train_rows, self._validation_rows = (
            lower(images, "frozen blocks"),
            lower(validation.images, "frozen blocks"),
        )
        self._images, self._views = len(train), transfer.views
        with torch.no_grad():
            image = torch.zeros(1, *train.images.shape[1:], device=workshop.device).permute(0, 3, 1, 2)
            last, _ = self._encoder.through(self._encoder.prepared(image), 0, start)
        self._shape = last.shape[1:]  # of the map that the first of the blocks takes

    def view(self, batch: Tensor) -> Tensor:
        """What the blocks below gave of a view of each training image of a batch."""
        return self._rows(self._train_rows, drawn_rows(batch, self._images, self._views))

    def validation(self, batch: Tensor) -> Tensor:
        return self._rows(self._validation_rows, batch)

    def _rows(self, rows: np.ndarray, batch: Tensor) -> Tensor:
        return torch.from_numpy(rows[batch.numpy()]).to(self._device)

    def read(self, given: Tensor) -> Tensor:
        """(N, D) of the blocks below → what the head reads."""
        flat, pooled = given.tensor_split([math.prod(self._shape)], dim=1)
        image = flat.reshape(-1, *self._shape).contiguous(memory_format=torch.channels_last)
        last, maps = self._encoder.through(image, self._start, len(self._encoder.blocks()))
        if not self._features:
            return last.mean(dim=(2, 3))
        return torch.cat([pooled, self._net.pool(maps, len(self._net.encoder.maps) - len(maps))], dim=1)
