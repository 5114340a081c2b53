"""What every operation is called with, and how long it may take: the caller's patience is a part of the request."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from time import perf_counter
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Depends, Header, Query, Request, Response
from starlette.requests import ClientDisconnect

from app.api.deadlines import Alarm, Alarms
from app.api.negotiation import chosen
from app.bundle.bundle import Bundle
from app.errors import DeadlinePassed
from app.inference.answer import RECONSTRUCTION, Outputs
from app.inference.model import Model
from app.inference.predictor import Prediction, Predictor
from app.telemetry.metrics import Metrics
from app.telemetry.requests import current_record

Result = TypeVar("Result")
SHAPED_ON_LOOP = 1 << 16  # pixels' values; some milliseconds of PNG and JSON

ModelName = Annotated[str | None, Query(description="name or name@version; unset, the default model")]
Timeout = Annotated[
    int | None,
    Header(alias="X-Timeout-Ms", ge=1, description="milliseconds after which the answer is of no use any more: 504"),
]
Accept = Annotated[str | None, Header(include_in_schema=False)]


class Plan(NamedTuple):
    """What an operation asks of a model, and what it makes of that."""

    needs: Sequence[str]  # operations that the model has to be able to do
    outputs: frozenset[str]
    shape: Callable[[Prediction], Response]


class Call:
    def __init__(
        self, request: Request, model: str | None = None, timeout_ms: int | None = None, accept: str | None = None
    ) -> None:
        self.request, self.model, self._accept = request, model, accept
        self._watcher: asyncio.Future[None] | None = None
        state = request.scope["app"].state
        self.predictor: Predictor = state.predictor
        self.metrics: Metrics = state.metrics
        self._alarms: Alarms = state.alarms
        allowed = state.settings.timeout_ms
        self._milliseconds = min(allowed, timeout_ms) if timeout_ms else allowed

    @property
    def bundle(self) -> Bundle:
        return self.predictor.repository.get(self.model).bundle

    def able(self, *operations: str) -> Model:
        """The model that is meant, if it is able to do the operations."""
        model = self.predictor.repository.get(self.model)
        record = current_record()
        record.model, record.version = model.bundle.name, model.bundle.version
        for operation in operations:
            model.bundle.require(operation)
        return model

    def require_room(self) -> None:
        """Before a body is read and parsed: under overload a refusal has to be cheap."""
        admission = self.predictor.admission
        if admission.images >= admission.most:
            admission.require(1, self.able().seconds)

    async def answered(self, images: Sequence[bytes], plan: Plan) -> Response:
        """What the model gives for the images, shaped."""
        model = self.able(*plan.needs)  # nothing is decoded for one that is not
        return await self.answered_by(model, images, plan.outputs, plan.shape)

    async def answered_by(
        self,
        model: Model,
        images: Sequence[bytes] | np.ndarray,
        outputs: Collection[str],
        shape: Callable[[Prediction], Response],
    ) -> Response:
        record = current_record()
        record.images = len(images)

        async def work() -> Response:
            found = await self.predictor.predict(images, model, frozenset(outputs))
            record.queue_s, record.decode_s, record.run_s = found.queue_s, found.decode_s, found.run_s
            return await shaped(values_of(found), lambda: shape(found))

        return await self.within(work())

    async def drawn(self, codes: np.ndarray, model: Model, shape: Callable[[np.ndarray], Response]) -> Response:
        """What the model's decoder makes of (n, D) codes, shaped."""
        graph = model.bundle.manifest.graphs.decoder
        assert graph is not None  # the caller has required it
        given, wanted = {graph.input.name: codes}, {RECONSTRUCTION}
        return await self.beyond(given, model, wanted, lambda found: shape(found[RECONSTRUCTION]))

    async def beyond(
        self, encoded: Outputs, model: Model, outputs: Collection[str], shape: Callable[[Outputs], Response]
    ) -> Response:
        """What the model's decoder and head make of what an encoder gave, shaped."""
        current_record().images = len(next(iter(encoded.values())))

        async def work() -> Response:
            found = await self.predictor.beyond(encoded, model, frozenset(outputs))
            return await shaped(_largest(found), lambda: shape(found))

        return await self.within(work())

    def hurry(self, milliseconds: int) -> None:
        """The caller has no more time than that."""
        self._milliseconds = min(self._milliseconds, milliseconds)

    def form(self, *offered: str) -> str:
        return chosen(self._accept, offered)

    async def within(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The work's result, if it comes in time and there is still somebody to give it to; else the work is dropped.

        Comes after the body was read: all that is left to be received is that the client goes away.
        """
        since = current_record().body_read or perf_counter()
        # Most work is done within a moment, for which nobody watches whether the caller leaves.
        alarm = self._alarms.set(since + self._milliseconds / 1000 - perf_counter(), later=self._watch)
        try:
            return await work
        except asyncio.CancelledError:
            if alarm.rang == "late":
                raise DeadlinePassed(f"not answered within {self._milliseconds:,} ms; the work was dropped") from None
            if alarm.rang:
                raise ClientDisconnect from None
            raise
        finally:
            alarm.off()
            if self._watcher is not None:
                self._watcher.cancel()

    def _watch(self, alarm: Alarm) -> None:
        self._watcher = asyncio.ensure_future(self._leaving())
        self._watcher.add_done_callback(lambda watcher: None if watcher.cancelled() else alarm.ring("left"))

    async def _leaving(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


async def shaped(values: int, shape: Callable[[], Response]) -> Response:
    """Answers with many pixels in them are drawn and encoded in a thread, so that nobody else waits for them."""
    return shape() if values <= SHAPED_ON_LOOP else await asyncio.to_thread(shape)


def values_of(found: Prediction) -> int:
    return max(found.images.size, _largest(found.outputs))


def _largest(outputs: Outputs) -> int:
    return max(values.size for values in outputs.values())


async def _call(request: Request, model: ModelName = None, timeout_ms: Timeout = None, accept: Accept = None) -> Call:
    """`async`, or FastAPI would make it in a thread."""
    call = Call(request, model, timeout_ms, accept)
    call.require_room()
    return call


ACall = Annotated[Call, Depends(_call)]
Operation = Callable[[Call, list[bytes]], Plan]  # without parameters
