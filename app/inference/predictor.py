"""One request's images through one model: admit → decode → batch → run."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle import tiles
from app.bundle.bundle import Bundle
from app.bundle.header import Header
from app.bundle.manifest import InputSpec
from app.errors import ImageError, TooManyPixels
from app.inference.admission import Admission
from app.inference.answer import (
    LOGITS,
    RECONSTRUCTION,
    OutputRequest,
    Outputs,
    joined_rows,
    of_picture,
    of_tiles,
)
from app.inference.batcher import Completed, Pending
from app.inference.decoding import Decoding, Headers, RaiseIfAbandoned
from app.inference.model import Model
from app.inference.repository import Repository

_QUICK_BYTES = 64 << 10  # several files are decoded on the event loop up to this size


@dataclass(slots=True)
class Prediction:
    bundle: Bundle
    images: np.ndarray  # (n, H, W, C) uint8, as the graphs saw them; of pictures in tiles no pixels: (n, 0, 0, C)
    outputs: Outputs
    decode_s: float
    queue_s: float
    run_s: float
    batch: int  # images in the same run of the graph


class PredictionTask:
    """A prediction in progress. It leaves the queue when it ends; a dropped one does not call `on_result`."""

    __slots__ = ("_admission", "_done", "_images", "_items", "_model", "_on_result")

    def __init__(
        self,
        admission: Admission,
        model: Model,
        images: np.ndarray,
        parts: Sequence[np.ndarray],
        outputs: frozenset[str],
        on_result: Callable[[Prediction | Exception], None],
    ) -> None:
        self._admission, self._model, self._images, self._on_result = admission, model, images, on_result
        self._done: list[Completed[Outputs]] = []
        self._items: Sequence[Pending[OutputRequest, Outputs]] = [
            model.batcher.put(OutputRequest(part, outputs), self._ended) for part in parts
        ]

    def drop(self) -> None:
        for item in self._items:
            self._model.batcher.drop(item)
        self._leave()

    def _ended(self, outcome: Completed[Outputs] | Exception) -> None:
        if isinstance(outcome, Exception):
            self.drop()
            self._on_result(outcome)
            return
        parts_done = self._done
        parts_done.append(outcome)
        if len(parts_done) < len(self._items):
            return
        self._leave()
        done = parts_done[0] if len(parts_done) == 1 else _merge(parts_done)
        images = self._images
        self._on_result(
            Prediction(
                self._model.bundle,
                images,
                outputs=done.result,
                decode_s=0.0,
                queue_s=done.queue_s,
                run_s=done.run_s,
                batch=done.batch,
            )
        )

    def _leave(self) -> None:
        self._admission.leave(len(self._images))
        self._items = ()  # breaks a reference cycle, so that no garbage collection is needed


class Predictor:
    """Images leave the queue when their work has ended, which may be after their caller has left."""

    def __init__(self, repository: Repository, admission: Admission, decoding: Decoding, max_batch: int) -> None:
        self.repository, self.admission, self.decoding = repository, admission, decoding
        self._max_batch = max_batch

    async def predict(self, files: Sequence[bytes] | np.ndarray, model: Model, outputs: frozenset[str]) -> Prediction:
        """Results are in the order of `files`: encoded images, or pixels of the model's size, (n, H, W, C) uint8."""
        count, bundle = len(files), model.bundle
        if bundle.tiled:
            assert not isinstance(files, np.ndarray)  # /v2 refuses pixels
            return await self._predict_pictures(files, model, outputs)
        headers = Headers((), small=True)  # pixels have none
        if not isinstance(files, np.ndarray):
            headers = await self.decoding.read_headers(files, bundle.manifest.input)
        with self.admission.admit(count, model.seconds, large=not headers.small):
            start = time.perf_counter()
            images = files if isinstance(files, np.ndarray) else await self._decode(bundle, files, headers)
            decode_s = time.perf_counter() - start
            if count <= self._max_batch:
                done = await model.batcher.submit(OutputRequest(images, outputs))
            else:
                done = await self._in_parts(model, images, outputs)
        return Prediction(
            bundle,
            images,
            outputs=done.result,
            decode_s=decode_s,
            queue_s=done.queue_s,
            run_s=done.run_s,
            batch=done.batch,
        )

    async def _predict_pictures(self, files: Sequence[bytes], model: Model, outputs: frozenset[str]) -> Prediction:
        """Of a model that cuts tiles: picture by picture, and of each some tiles at a time.

        So one picture is in memory, and no more than one batch of its tiles waits before those of other requests.
        """
        bundle = model.bundle
        spec, most = bundle.manifest.input, min(self._max_batch, bundle.tiles_at_once)
        headers = await self.decoding.read_headers(files, spec)
        count = sum(_tiles_of(header, spec) for header in headers.each)
        room = self.admission.most - self.admission.reserved
        if count > max(1, room):
            raise TooManyPixels(
                f"{count:,} tiles of {spec.height} pixels; at most {room:,} are allowed (MAX_QUEUE): send fewer or "
                "smaller pictures"
            )
        done: list[Completed[Outputs]] = []
        decode_s = 0.0
        with self.admission.admit(count, model.seconds, large=count > 1 or not headers.small):
            for index, header in enumerate(headers.each):
                start = time.perf_counter()
                async with self.decoding.picture(files, index, header, spec, hold=self.admission.hold) as picture:
                    decode_s += time.perf_counter() - start
                    grid = bundle.grid(picture)
                    parts = [
                        await model.batcher.submit(OutputRequest(some, of_tiles(outputs)))
                        for some in tiles.cut(picture, grid, most)
                    ]
                found = of_picture(bundle, [part.result for part in parts], grid, outputs)
                done += [
                    Completed(
                        found,
                        sum(each.queue_s for each in parts),
                        sum(each.run_s for each in parts),
                        max(each.batch for each in parts),
                    )
                ]
                if model.drift is not None:
                    model.drift.add([found])
        whole = _merge(done)
        return Prediction(
            bundle,
            np.empty((len(files), 0, 0, spec.channels), np.uint8),
            outputs=whole.result,
            decode_s=decode_s,
            queue_s=whole.queue_s,
            run_s=whole.run_s,
            batch=whole.batch,
        )

    async def _in_parts(self, model: Model, images: np.ndarray, outputs: frozenset[str]) -> Completed[Outputs]:
        """More images than fit into a batch run as several, so that other requests can run in between."""
        tasks = [
            asyncio.ensure_future(model.batcher.submit(OutputRequest(part, outputs))) for part in self._parts(images)
        ]
        try:
            return _merge(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # if one has failed, the others are dropped
                task.cancel()

    def begin(
        self,
        images: np.ndarray,
        model: Model,
        outputs: frozenset[str],
        on_result: Callable[[Prediction | Exception], None],
    ) -> "PredictionTask":
        """Like `predict`, for pixels and without a task: `on_result` is called once, on the event loop."""
        count = len(images)
        self.admission.enter(count, model.seconds)
        parts = [images] if count <= self._max_batch else self._parts(images)
        return PredictionTask(
            self.admission, model=model, images=images, parts=parts, outputs=outputs, on_result=on_result
        )

    def _parts(self, images: np.ndarray) -> list[np.ndarray]:
        return [images[at : at + self._max_batch] for at in range(0, len(images), self._max_batch)]

    async def run_from_encoded(self, encoded: Outputs, model: Model, outputs: frozenset[str]) -> Outputs:
        """The encoder's outputs, (n, D) by tensor name → RECONSTRUCTION or LOGITS, as in `outputs`.

        Runs in a thread if there are many images.
        """
        graphs = {RECONSTRUCTION: model.bundle.reconstruct, LOGITS: model.bundle.logits}
        count = len(next(iter(encoded.values())))

        def run(raise_if_abandoned: RaiseIfAbandoned) -> Outputs:
            parts = []
            for at in range(0, count, self._max_batch):
                raise_if_abandoned()
                part = {name: values[at : at + self._max_batch] for name, values in encoded.items()}
                parts.append({output: graphs[output](part) for output in outputs})
            return joined_rows(parts)

        with self.admission.admit(count, model.seconds):
            return (
                run(_no_check)
                if count <= model.most_on_loop
                else await self.decoding.in_thread(run, count, self.admission.hold)
            )

    async def _decode(self, bundle: Bundle, files: Sequence[bytes], headers: Headers) -> np.ndarray:
        images = self.decoded_if_quick(bundle, files)
        if images is not None:
            return images
        return await self.decoding.decode(files, headers, bundle.manifest.input, self.admission.hold)

    def decoded_if_quick(self, bundle: Bundle, files: Sequence[bytes]) -> np.ndarray | None:
        """(n, H, W, C) uint8, if decoding takes no longer than a switch of threads; else None.

        Several images must already have the model's size. Pictures to be cut into tiles have another way.
        """
        if bundle.tiled:
            return None
        limits = self.decoding.limits
        if len(files) == 1:
            image = bundle.preprocess_if_quick(files[0], limits.image_pixels)
            return None if image is None else image[None]
        height, width, _ = bundle.manifest.input.shape
        if sum(map(len, files)) > _QUICK_BYTES or len(files) * height * width > limits.request_pixels:
            return None
        images = np.empty((len(files), *bundle.manifest.input.shape), np.uint8)
        for index, data in enumerate(files):
            try:
                pixels = bundle.pixels_if_quick(data, limits.image_pixels)
            except ImageError:  # decoding them in order will find which one is broken
                return None
            if pixels is None:
                return None
            images[index] = pixels
        return images


def _tiles_of(header: Header, spec: InputSpec) -> int:
    return len(tiles.grid_of(*tiles.scaled_size(header.width, header.height, spec), spec))


def _merge(parts: Sequence[Completed[Outputs]]) -> Completed[Outputs]:
    return Completed(
        joined_rows([each.result for each in parts]),
        parts[0].queue_s,
        sum(each.run_s for each in parts),
        max(each.batch for each in parts),
    )


def _no_check() -> None:
    """On the event loop a caller cannot leave during the work."""
