"""One request's images through one model: admit → decode → batch → run."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from app.bundle import tiles
from app.bundle.bundle import Bundle
from app.bundle.header import Header
from app.bundle.manifest import InputSpec
from app.errors import Faults, ImageError, TooManyPixels
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
from app.inference.decoding import Decoding, Headers, RaiseIfAbandoned, set_aside
from app.inference.model import Model
from app.inference.repository import Repository

_QUICK_BYTES = 64 << 10  # of all files; as many are decoded on the event loop at most
_QUICK_FILES = 8  # that are not plain PNGs of the model's size
_QUICK_S = 0.0005  # as headers are estimated, twice what it takes: then a thread's 30 µs and its switches pay


@dataclass(slots=True)
class Prediction:
    bundle: Bundle
    files: Sequence[bytes]  # as they were sent; of pixels none
    images: np.ndarray  # (n, H, W, C) uint8, as the graphs saw them; of pictures in tiles no pixels: (n, 0, 0, C)
    outputs: Outputs
    decode_s: float
    queue_s: float
    run_s: float
    batch: int  # images in the same run of the graph
    faults: Faults | None = None  # of a partial request: what is wrong with the images that are missing here


OnResult = Callable[[Prediction | Exception], None]
Item = TypeVar("Item")


class PredictionTask(Protocol):
    """A prediction in progress."""

    def drop(self) -> None:
        """Its result is not wanted any more: `on_result` is not called. Does nothing once it has been."""


class _Run:
    """Decoded images in the batcher. They leave the queue when they have ended."""

    __slots__ = ("_decode_s", "_done", "_files", "_images", "_items", "_leave", "_model", "_on_result")

    def __init__(
        self,
        model: Model,
        files: Sequence[bytes],
        images: np.ndarray,
        parts: Sequence[np.ndarray],
        outputs: frozenset[str],
        decode_s: float,
        on_result: OnResult,
        leave: Callable[[], None],
    ) -> None:
        self._model, self._files, self._images, self._decode_s = model, files, images, decode_s
        self._on_result, self._leave = on_result, leave
        self._done: list[Completed[Outputs]] = []
        self._items: Sequence[Pending[OutputRequest, Outputs]] = [
            model.batcher.put(OutputRequest(part, outputs), self._ended) for part in parts
        ]

    def drop(self) -> None:
        if self._items:
            for item in self._items:
                self._model.batcher.drop(item)
            self._end()

    def _ended(self, outcome: Completed[Outputs] | Exception) -> None:
        if isinstance(outcome, Exception):
            self.drop()
            self._on_result(outcome)
            return
        parts_done = self._done
        parts_done.append(outcome)
        if len(parts_done) < len(self._items):
            return
        self._end()
        done = parts_done[0] if len(parts_done) == 1 else _merge(parts_done)
        self._on_result(
            Prediction(
                self._model.bundle,
                self._files,
                self._images,
                outputs=done.result,
                decode_s=self._decode_s,
                queue_s=done.queue_s,
                run_s=done.run_s,
                batch=done.batch,
            )
        )

    def _end(self) -> None:
        self._leave()
        self._items = ()  # breaks a reference cycle, so that no garbage collection is needed


class _InTask:
    """A prediction that has to wait for threads before its images are in the batcher."""

    __slots__ = ("_on_result", "_task")

    def __init__(self, work: Coroutine[Any, Any, Prediction], on_result: OnResult) -> None:
        self._on_result: OnResult | None = on_result
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(self._ended)

    def drop(self) -> None:
        self._on_result = None
        self._task.cancel()

    def _ended(self, task: "asyncio.Task[Prediction]") -> None:
        error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        on_result, self._on_result = self._on_result, None
        if on_result is None:
            return
        if error is None:
            on_result(task.result())
        else:
            on_result(error if isinstance(error, Exception) else RuntimeError(f"the work ended in {error!r}"))


class Predictor:
    """Images leave the queue when their work has ended, which may be after their caller has left."""

    def __init__(self, repository: Repository, admission: Admission, decoding: Decoding, max_batch: int) -> None:
        self.repository, self.admission, self.decoding = repository, admission, decoding
        self._max_batch = max_batch

    def begin(
        self, files: Sequence[bytes] | np.ndarray, model: Model, outputs: frozenset[str], on_result: OnResult
    ) -> PredictionTask:
        """`files` are encoded images, or pixels of the model's size, (n, H, W, C) uint8; results are in their order.

        `on_result` is called once, on the event loop, unless the work is dropped. What is known at once is raised: a
        full queue, or what is wrong with images that are decoded at once.
        """
        if isinstance(files, np.ndarray):
            self.admission.enter(len(files), model.seconds)
            leave = partial(self.admission.leave, len(files))
            return self._run(model, (), files, outputs, decode_s=0.0, on_result=on_result, leave=leave)
        if model.bundle.tiled or sum(map(len, files)) > _QUICK_BYTES:
            return _InTask(self._predict(files, model, outputs), on_result)
        start = time.perf_counter()
        self.admission.enter(len(files), model.seconds)
        leave = partial(self.admission.leave, len(files))
        try:
            images = self._decoded_if_quick(model.bundle, files)
        except BaseException:
            leave()
            raise
        if images is None:
            leave()
            return _InTask(self._predict(files, model, outputs), on_result)
        decode_s = time.perf_counter() - start
        return self._run(model, files, images, outputs, decode_s=decode_s, on_result=on_result, leave=leave)

    async def predict(self, files: Sequence[bytes] | np.ndarray, model: Model, outputs: frozenset[str]) -> Prediction:
        """Like `begin`, for a caller that waits; if it leaves, the work is dropped."""
        return await _result_of(partial(self.begin, files, model, outputs))

    async def predict_good(
        self, files: Sequence[bytes], model: Model, outputs: frozenset[str], faults: Faults
    ) -> Prediction | None:
        """Like `predict`, of the files that are not in `faults`; to it are added those that turn out to be bad. None if
        no file is good."""
        places = _without(faults, range(len(files)))
        bad: Faults = {}
        headers = await self.decoding.read_headers([files[at] for at in places], model.bundle.manifest.input, bad)
        faults |= {places[index]: error for index, error in bad.items()}
        places = _without(bad, places)
        if not places:
            return None
        broken: Faults = {}
        try:
            result = await self._predict([files[at] for at in places], model, outputs, headers, faults=broken)
        except _NoneGood:
            result = None
        faults |= {places[index]: error for index, error in broken.items()}
        if result is not None:
            result.faults = faults
        return result

    async def _predict(
        self,
        files: Sequence[bytes],
        model: Model,
        outputs: frozenset[str],
        headers: Headers | None = None,
        faults: Faults | None = None,
    ) -> Prediction:
        """With `faults` broken files are added to it, and are not in the result; raises _NoneGood if all are."""
        spec = model.bundle.manifest.input
        headers = headers or await self.decoding.read_headers(files, spec)
        if model.bundle.tiled:
            return await self._predict_pictures(files, model, outputs, headers, faults=faults)
        with self.admission.admit(len(files), model.seconds, large=not headers.small):
            start = time.perf_counter()
            images = await self.decoding.decode(files, headers, spec, self.admission.hold, faults=faults)
            files = _without(faults or {}, files)
            if not files:
                raise _NoneGood
            decode_s = time.perf_counter() - start
            return await _result_of(
                lambda on_result: self._run(
                    model, files, images, outputs, decode_s=decode_s, on_result=on_result, leave=_nothing
                )
            )

    async def _predict_pictures(
        self,
        files: Sequence[bytes],
        model: Model,
        outputs: frozenset[str],
        headers: Headers,
        faults: Faults | None,
    ) -> Prediction:
        """Of a model that cuts tiles: picture by picture, and of each some tiles at a time.

        So one picture is in memory, and no more than one batch of its tiles waits before those of other requests.
        """
        spec = model.bundle.manifest.input
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
                with set_aside(index, faults):
                    seconds, picture = await self._predict_picture(files, index, header, model, outputs=outputs)
                    decode_s += seconds
                    done.append(picture)
        files = _without(faults or {}, files)
        if not done:
            raise _NoneGood
        whole = _merge(done)
        return Prediction(
            model.bundle,
            files,
            np.empty((len(files), 0, 0, spec.channels), np.uint8),
            outputs=whole.result,
            decode_s=decode_s,
            queue_s=whole.queue_s,
            run_s=whole.run_s,
            batch=whole.batch,
        )

    async def _predict_picture(
        self, files: Sequence[bytes], index: int, header: Header, model: Model, outputs: frozenset[str]
    ) -> tuple[float, Completed[Outputs]]:
        """(seconds of decoding, what all its tiles gave) of one of the files."""
        bundle, start = model.bundle, time.perf_counter()
        spec, most = bundle.manifest.input, min(self._max_batch, bundle.tiles_at_once)
        async with self.decoding.picture(files, index, header, spec, hold=self.admission.hold) as picture:
            decode_s = time.perf_counter() - start
            grid = bundle.grid(picture)
            parts = [
                await model.batcher.submit(OutputRequest(some, of_tiles(outputs)))
                for some in tiles.cut(picture, grid, most)
            ]
        found = of_picture(bundle, [part.result for part in parts], grid, outputs)
        if model.drift is not None:
            model.drift.add([found])
        queue_s, run_s = sum(each.queue_s for each in parts), sum(each.run_s for each in parts)
        return decode_s, Completed(found, queue_s, run_s, max(each.batch for each in parts))

    def _run(
        self,
        model: Model,
        files: Sequence[bytes],
        images: np.ndarray,
        outputs: frozenset[str],
        decode_s: float,
        on_result: OnResult,
        leave: Callable[[], None],
    ) -> _Run:
        """More images than fit into a batch run as several, so that other requests can run in between."""
        parts = [images] if len(images) <= self._max_batch else self._parts(images)
        return _Run(
            model, files, images, parts=parts, outputs=outputs, decode_s=decode_s, on_result=on_result, leave=leave
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

    def _decoded_if_quick(self, bundle: Bundle, files: Sequence[bytes]) -> np.ndarray | None:
        """(n, H, W, C) uint8, if decoding takes no longer than a switch of threads; else None."""
        spec, limits = bundle.manifest.input, self.decoding.limits
        if len(files) == 1:
            image = bundle.preprocess_if_quick(files[0], limits.image_pixels)
            if image is not None:
                return image[None]
        elif len(files) * spec.height * spec.width <= limits.request_pixels:
            images = self._plain(bundle, files)
            if images is not None:
                return images
        return self.decoding.decoded_within(_QUICK_S, files, spec) if len(files) <= _QUICK_FILES else None

    def _plain(self, bundle: Bundle, files: Sequence[bytes]) -> np.ndarray | None:
        """Of small plain PNGs that have the model's size."""
        images = np.empty((len(files), *bundle.manifest.input.shape), np.uint8)
        for index, data in enumerate(files):
            try:
                pixels = bundle.pixels_if_quick(data, self.decoding.limits.image_pixels)
            except ImageError:  # decoding them in order will find which one is broken
                return None
            if pixels is None:
                return None
            images[index] = pixels
        return images


class _NoneGood(Exception):
    """All files of a request are broken. `predict_good` catches it."""


def _without(faults: Faults, items: Sequence[Item]) -> list[Item]:
    """The items whose index is not in `faults`."""
    return [item for index, item in enumerate(items) if index not in faults]


async def _result_of(begin: Callable[[OnResult], PredictionTask]) -> Prediction:
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()

    def on_result(result: Prediction | Exception) -> None:
        if future.done():  # cancelled in this iteration of the loop
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    task = begin(on_result)
    try:
        return await future
    finally:
        task.drop()


def _nothing() -> None:
    """Its places are left elsewhere."""


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
