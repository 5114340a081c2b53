"""One request's images through one model: admit → decode → batch → run."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.decode import is_quick
from app.errors import ImageError
from app.inference.admission import Admission
from app.inference.answer import Outputs, Wish
from app.inference.model import Model
from app.inference.repository import Repository

_QUICK_ON_LOOP = 16  # images whose decoding takes microseconds


@dataclass(frozen=True, slots=True)
class Answered:
    bundle: Bundle
    images: np.ndarray  # (n, H, W, C) uint8, as the graphs saw them
    outputs: Outputs
    decode_s: float
    queue_s: float
    run_s: float
    batch: int  # images that ran together


class Predictor:
    def __init__(self, repository: Repository, admission: Admission, pool: Executor, max_pixels: int) -> None:
        """`pool` has as many threads as may decode at once: each costs the memory of a whole picture."""
        self.repository, self.admission = repository, admission
        self._pool, self._max_pixels = pool, max_pixels

    async def predict(
        self, files: Sequence[bytes], model: str | None, needs: Sequence[str], outputs: frozenset[str]
    ) -> Answered:
        """In the order of `files`; nothing is decoded for a model that lacks an operation that is needed."""
        chosen = self.repository.get(model)
        for operation in needs:
            chosen.bundle.require(operation)
        with self.admission.admit(len(files), chosen.seconds):
            start = time.perf_counter()
            images = await self._decoded(chosen.bundle, files)
            decode_s = time.perf_counter() - start
            done = await chosen.batcher.submit(Wish(images, outputs))
        return Answered(chosen.bundle, images, done.result, decode_s, done.queue_s, done.run_s, done.batch)

    async def decode(self, codes: np.ndarray, model: Model) -> np.ndarray:
        """(n, D) float32 → (n, H, W, C) float32 in 0…1, off the event loop where it takes long."""
        bundle = model.bundle
        graph = bundle.manifest.graphs.decoder
        assert graph is not None  # the caller has required it
        given = {graph.input.name: codes}
        with self.admission.admit(len(codes), model.seconds):
            if len(codes) <= model.most_on_loop:
                return bundle.reconstruct(given)
            return await asyncio.get_running_loop().run_in_executor(self._pool, bundle.reconstruct, given)

    async def _decoded(self, bundle: Bundle, files: Sequence[bytes]) -> np.ndarray:
        if len(files) <= _QUICK_ON_LOOP and all(map(is_quick, files)):
            return self._decode(bundle, files)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._decode, bundle, files)

    def _decode(self, bundle: Bundle, files: Sequence[bytes]) -> np.ndarray:
        images = np.empty((len(files), *bundle.manifest.input.shape), np.uint8)
        for index, data in enumerate(files):
            try:
                images[index] = bundle.preprocess(data, self._max_pixels)
            except ImageError as error:
                error.index = index if len(files) > 1 else None
                raise
        return images
