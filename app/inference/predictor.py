"""One request's images through one model: decode → batch → run → score."""

import asyncio
from collections.abc import Sequence

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.scoring import Classification
from app.errors import ImageError
from app.inference.repository import Repository


class Predictor:
    def __init__(self, repository: Repository, max_pixels: int) -> None:
        self._repository, self._max_pixels = repository, max_pixels

    async def classify(self, files: Sequence[bytes], model: str | None) -> tuple[Bundle, list[Classification]]:
        """The answers in the order of `files`; decoding and running leave the event loop free."""
        bundle = self._repository.get(model)
        return bundle, await asyncio.to_thread(self._classify, bundle, files)

    def _classify(self, bundle: Bundle, files: Sequence[bytes]) -> list[Classification]:
        return bundle.classify(self._decode(bundle, files))

    def _decode(self, bundle: Bundle, files: Sequence[bytes]) -> np.ndarray:
        images = np.empty((len(files), *bundle.manifest.input.shape), np.uint8)
        for index, data in enumerate(files):
            try:
                images[index] = bundle.preprocess(data, self._max_pixels)
            except ImageError as error:
                error.index = index if len(files) > 1 else None
                raise
        return images
