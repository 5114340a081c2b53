"""One call of a model: which model, what it computes, the shape of the response, and the deadline."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from time import perf_counter
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Depends, Header, Query, Request, Response
from starlette.requests import ClientDisconnect

from app.api.deadlines import Deadline, Deadlines
from app.api.negotiation import choose
from app.api.problems import kind_of
from app.bundle.bundle import Bundle
from app.errors import DeadlinePassed, Faults
from app.inference.answer import RECONSTRUCTION, Outputs
from app.inference.feedback import Feedback
from app.inference.model import Model
from app.inference.predictor import Prediction, Predictor
from app.telemetry.metrics import Metrics
from app.telemetry.requests import current_record, request_id

Result = TypeVar("Result")
SHAPED_ON_LOOP = 1 << 16  # pixel values; a few milliseconds of PNG and JSON

ModelName = Annotated[str | None, Query(description="name or name@version; unset, the default model")]
Timeout = Annotated[
    int | None,
    Header(alias="X-Timeout-Ms", ge=1, description="deadline in milliseconds, after which the answer is 504"),
]
Accept = Annotated[str | None, Header(include_in_schema=False)]


class Plan(NamedTuple):
    """What an operation needs of a model, and how it turns the outputs into a response."""

    needs: Sequence[str]  # operations that the model has to support
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
        self._deadlines: Deadlines = state.deadlines
        self._feedback: Feedback | None = state.feedback
        allowed = state.settings.timeout_ms
        self._milliseconds = min(allowed, timeout_ms) if timeout_ms else allowed

    @property
    def bundle(self) -> Bundle:
        return self.predictor.repository.get(self.model).bundle

    def require_model(self, *operations: str) -> Model:
        """The requested model; raises OperationUnavailable unless it supports the operations."""
        model = self.predictor.repository.get(self.model)
        record = current_record()
        record.model, record.version = model.bundle.name, model.bundle.version
        for operation in operations:
            model.bundle.require(operation)
        return model

    def require_room(self) -> None:
        """Call this before the body is read and parsed: under overload a refusal has to be cheap."""
        admission = self.predictor.admission
        if admission.images >= admission.most:
            admission.require(1, self.require_model().seconds)

    async def run(self, images: Sequence[bytes], plan: Plan) -> Response:
        model = self.require_model(*plan.needs)  # before any image is decoded
        return await self.run_model(model, images, plan.outputs, plan.shape)

    async def run_partial(
        self,
        images: Sequence[bytes],
        faults: Faults,
        plan: Plan,
        none_good: Callable[[Bundle, Faults], Response],
    ) -> Response:
        """As `run`, of the images that are good. `faults` are of those that are known to be bad, and become all."""
        model = self.require_model(*plan.needs)
        current_record().images = len(images)

        async def work() -> Response:
            result = await self.predictor.predict_good(images, model, plan.outputs, faults)
            self.metrics.images_refused(kind_of(error) for error in faults.values())
            return none_good(model.bundle, faults) if result is None else await self._shaped(result, plan.shape)

        return await self.within_deadline(work())

    async def run_model(
        self,
        model: Model,
        images: Sequence[bytes] | np.ndarray,
        outputs: Collection[str],
        shape: Callable[[Prediction], Response],
    ) -> Response:
        current_record().images = len(images)

        async def work() -> Response:
            return await self._shaped(await self.predictor.predict(images, model, frozenset(outputs)), shape)

        return await self.within_deadline(work())

    async def _shaped(self, result: Prediction, shape: Callable[[Prediction], Response]) -> Response:
        current_record().ran(result.queue_s, result.decode_s, result.run_s)
        if self._feedback is not None:
            self._feedback.recent.add(request_id.get(), result)
        return await shape_response(value_count(result), lambda: shape(result))

    async def run_decoder(
        self, embeddings: np.ndarray, model: Model, shape: Callable[[np.ndarray], Response]
    ) -> Response:
        """(n, D) embeddings → the model's decoder → `shape` gets (n, H, W, C) images."""
        graph = model.bundle.manifest.graphs.decoder
        assert graph is not None  # the caller has required "decode"
        encoded, outputs = {graph.input.name: embeddings}, {RECONSTRUCTION}
        return await self.run_from_encoded(encoded, model, outputs, lambda results: shape(results[RECONSTRUCTION]))

    async def run_from_encoded(
        self, encoded: Outputs, model: Model, outputs: Collection[str], shape: Callable[[Outputs], Response]
    ) -> Response:
        """Run the model's decoder and head on outputs of its encoder."""
        current_record().images = len(next(iter(encoded.values())))

        async def work() -> Response:
            results = await self.predictor.run_from_encoded(encoded, model, frozenset(outputs))
            return await shape_response(_largest(results), lambda: shape(results))

        return await self.within_deadline(work())

    def limit_time(self, milliseconds: int) -> None:
        """Bring the deadline forward, if it is later than that."""
        self._milliseconds = min(self._milliseconds, milliseconds)

    def choose_type(self, *offered: str, partial: bool = False) -> str:
        """The media type that the Accept header prefers. Problems among results take the first, JSON."""
        return choose(self._accept, offered[:1] if partial else offered)

    async def within_deadline(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The work's result. At the deadline, or when the client disconnects, the work is dropped.

        Call this after the body was read: the only message left to receive is that the client has disconnected.
        """
        since = current_record().body_read or perf_counter()
        # Most work ends before the client is watched at all.
        seconds = since + self._milliseconds / 1000 - perf_counter()
        deadline = self._deadlines.set(seconds, after_moment=self._watch_client)
        try:
            return await work
        except asyncio.CancelledError:
            if deadline.fired == "late":
                raise late(self._milliseconds) from None
            if deadline.fired:
                raise ClientDisconnect from None
            raise
        finally:
            deadline.clear()
            if self._watcher is not None:
                self._watcher.cancel()

    def _watch_client(self, deadline: Deadline) -> None:
        self._watcher = asyncio.ensure_future(self._disconnect())
        self._watcher.add_done_callback(lambda watcher: None if watcher.cancelled() else deadline.fire("left"))

    async def _disconnect(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def late(milliseconds: int) -> DeadlinePassed:
    return DeadlinePassed(f"not answered within {milliseconds:,} ms; the work was dropped")


async def shape_response(values: int, shape: Callable[[], Response]) -> Response:
    """Responses with many pixels are encoded in a thread, so that they do not hold up the event loop."""
    return shape() if values <= SHAPED_ON_LOOP else await asyncio.to_thread(shape)


def value_count(result: Prediction) -> int:
    """Of the largest array from which a response is shaped."""
    return max(result.images.size, _largest(result.outputs))


def _largest(outputs: Outputs) -> int:
    return max(map(_size, outputs.values()))


def _size(values: np.ndarray) -> int:
    return values.size if values.dtype != object else sum(each.size for each in values)


async def _call(request: Request, model: ModelName = None, timeout_ms: Timeout = None, accept: Accept = None) -> Call:
    """`async` because FastAPI would call a plain function in a thread."""
    call = Call(request, model, timeout_ms, accept)
    call.require_room()
    return call


ACall = Annotated[Call, Depends(_call)]
# classify, encode and so on: the call, its images, of which their number alone matters, and parameters of the query
OperationFunction = Callable[..., Plan]
