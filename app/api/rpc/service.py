"""The protocol's methods over gRPC: what app/api/v2 has over HTTP, with the same predictor, limits, keys and metrics.

    key? ─▶ message ─▶ room? ─▶ translate ─▶ Predictor.predict ─▶ translate ─▶ count
      └────────┴─────────┴──────────┴───────────────┴─▶ the status that the error's HTTP status stands for

A client that cancels, or whose deadline passes, ends the handler's task, which drops its work.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from time import perf_counter
from typing import Any, NoReturn

import grpc
from fastapi import FastAPI

from app.api.call import SHAPED_ON_LOOP, late, value_count
from app.api.deadlines import Deadlines
from app.api.middleware import access
from app.api.problems import answer_to, problem
from app.api.rpc import translate
from app.api.rpc.messages import SERVICE, message
from app.api.rpc.translate import Message
from app.api.v2 import describe
from app.api.v2.routes import EXTENSIONS, computed, version_to_load
from app.api.v2.tensors import ResolvedRequest, resolve
from app.errors import BodyTooSlow, GraftError, MalformedRequest, QueueFull, Unauthorised
from app.inference.admission import Bytes
from app.inference.model import Model
from app.inference.predictor import Predictor
from app.telemetry.logs import RequestLog, log
from app.telemetry.metrics import UNKNOWN, Metrics
from app.telemetry.requests import CLIENT_DISCONNECTED, HEADER, Begin, RequestRecord, identify, set_context

INFER = "infer"
_CODES = {
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    HTTPStatus.REQUEST_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # every other status of 400 to 499: INVALID_ARGUMENT
_OPEN = frozenset({"ServerLive", "ServerReady"})  # without a key, as over HTTP
_PARSED_AT_ONCE = 256 << 10  # bytes of a message; larger ones are parsed in a thread
_MOST_OF_STREAM = 32  # messages of one stream that are answered at once

Context = Any  # grpc.aio.ServicerContext


class Service:
    def __init__(self, app: FastAPI, keys: access.Keys, request_log: RequestLog, room: Bytes, begin: Begin) -> None:
        self._settings, self._version = app.state.settings, app.version
        self._predictor: Predictor = app.state.predictor
        self._repository = self._predictor.repository
        self._metrics: Metrics = app.state.metrics
        self._deadlines: Deadlines = app.state.deadlines
        self._keys, self._log, self._room, self.begin = keys, request_log, room, begin
        self.running = 0  # calls that have begun and not ended
        self._reading: set[asyncio.Task[Any]] = set()  # of the next message of each stream

    def handler(self) -> grpc.GenericRpcHandler:
        simple: dict[str, Callable[[Message], Awaitable[Message]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._simple(name, function),
                request_deserializer=message(SERVICE.methods_by_name[name].input_type.name).FromString,
                response_serializer=_serialised,
            )
            for name, function in simple.items()
        }
        # The message is read by the handler, once the key was seen.
        methods["ModelInfer"] = grpc.stream_unary_rpc_method_handler(self._infer)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE.full_name, methods)

    # --- inference ---------------------------------------------------------------------------------------------------

    async def _infer(self, _: object, context: Context) -> bytes:
        with _Call(self, context, "ModelInfer", INFER) as call:
            try:
                self._require_key(context)
                body = await self._read(context)
                if body is grpc.aio.EOF:
                    raise MalformedRequest("the call ended before its message")
                return await self._answer(body, call.record, context.time_remaining())
            except Exception as error:
                return await call.refuse(error)

    async def _stream(self, _: object, context: Context) -> AsyncIterator[bytes]:
        """Answers in the order of the messages; an error is an answer, and does not end the stream."""
        reading: asyncio.Task[Any] | None = None
        waiting: deque[asyncio.Task[bytes]] = deque()
        with _Call(self, context, "ModelStreamInfer") as call:
            try:
                self._require_key(context)
                reading = self._next(context)
                while reading is not None or waiting:
                    has_room = len(waiting) < _MOST_OF_STREAM
                    awaited = [*([reading] if reading and has_room else []), *list(waiting)[:1]]
                    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                    if reading is not None and reading.done() and has_room:
                        body, reading = grpc.aio.EOF if reading.cancelled() else reading.result(), None
                        if body is not grpc.aio.EOF:
                            waiting.append(asyncio.ensure_future(self._answer_in_stream(body, context)))
                            reading = self._next(context)
                    while waiting and waiting[0].done():
                        yield waiting.popleft().result()
            except Exception as error:
                await call.refuse(error)
            finally:
                for task in (*waiting, *([reading] if reading else [])):
                    task.cancel()

    def _next(self, context: Context) -> "asyncio.Task[Any]":
        reading: asyncio.Task[Any] = asyncio.ensure_future(context.read())
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        return reading

    def end_streams(self) -> None:
        """Streams take no more messages, and end when those that they have are answered."""
        for reading in list(self._reading):
            reading.cancel()

    async def _answer_in_stream(self, body: bytes, context: Context) -> bytes:
        answer = message("ModelStreamInferResponse")()
        with _Call(self, context, "ModelStreamInfer", INFER) as call:
            try:
                found = await self._answer(body, call.record, context.time_remaining())
                answer.infer_response.MergeFromString(found)
            except Exception as error:
                _, answer.error_message = call.failed(error)
                answer.infer_response.id = _id_in(body)
        return _serialised(answer)

    async def _read(self, context: Context) -> Any:
        deadline = self._deadlines.set(self._settings.body_timeout_s)
        try:
            return await context.read()
        except asyncio.CancelledError:
            if deadline.fired:
                raise BodyTooSlow(f"the message did not arrive within {self._settings.body_timeout_s:,} s") from None
            raise
        finally:
            deadline.clear()

    async def _answer(self, body: bytes, record: RequestRecord, remaining_s: float | None) -> bytes:
        size = len(body)
        self._room.acquire(size)
        try:
            record.body_read = perf_counter()
            request = await self._apart(size, translate.parse, body)
            model = self._model(request.model_name, request.model_version, record)
            admission = self._predictor.admission
            if admission.images >= admission.most:  # under overload a refusal has to be cheap
                admission.require(1, model.seconds)
            resolved = await self._apart(size, self._resolve, request, model)
            milliseconds = min(self._settings.timeout_ms, resolved.request.timeout_ms or self._settings.timeout_ms)
            if remaining_s is not None:
                milliseconds = min(milliseconds, max(1, int(1000 * remaining_s)))
            return await self._within(milliseconds, self._run(model, resolved, record))
        finally:
            self._room.release(size)

    async def _apart(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """In a thread, if the message is large."""
        return function(*arguments) if size < _PARSED_AT_ONCE else await asyncio.to_thread(function, *arguments)

    def _resolve(self, request: Message, model: Model) -> ResolvedRequest:
        return resolve(translate.infer_request(request), model.bundle, self._settings.max_images)

    async def _within(self, milliseconds: int, work: Awaitable[bytes]) -> bytes:
        deadline = self._deadlines.set(milliseconds / 1000)
        try:
            return await work
        except asyncio.CancelledError:
            if deadline.fired:
                raise late(milliseconds) from None
            raise
        finally:
            deadline.clear()

    async def _run(self, model: Model, resolved: ResolvedRequest, record: RequestRecord) -> bytes:
        if resolved.images is None:
            record.images = len(next(iter(resolved.encoded.values())))
            outputs = await self._predictor.run_from_encoded(resolved.encoded, model, resolved.needs)
            values = max(each.size for each in outputs.values())
        else:
            record.images = len(resolved.images)
            result = await self._predictor.predict(resolved.images, model, resolved.needs)
            record.ran(result.queue_s, result.decode_s, result.run_s)
            outputs, values = result.outputs, value_count(result)

        def shape() -> bytes:
            found = computed(self._metrics, model.bundle, resolved, outputs)
            return _serialised(translate.infer_response(model.bundle, resolved.request.id, found))

        return shape() if values <= SHAPED_ON_LOOP else await asyncio.to_thread(shape)

    # --- the other calls ---------------------------------------------------------------------------------------------

    async def _server_live(self, _: Message) -> Message:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, _: Message) -> Message:
        ready = self._repository.ready and not self._repository.leaving
        return message("ServerReadyResponse")(ready=ready)

    async def _model_ready(self, request: Message) -> Message:
        self._model(request.name, request.version)
        return message("ModelReadyResponse")(ready=True)

    async def _server_metadata(self, _: Message) -> Message:
        return message("ServerMetadataResponse")(name="graft", version=self._version, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Message) -> Message:
        bundle = self._model(request.name, request.version).bundle
        found = describe.metadata(bundle, describe.versions(self._repository, bundle.name))
        return translate.of_document("ModelMetadataResponse", found.model_dump())

    async def _model_config(self, request: Message) -> Message:
        bundle = self._model(request.name, request.version).bundle
        found = describe.configuration(bundle, self._settings.max_images)
        return translate.of_document("ModelConfigResponse", {"config": found})

    async def _model_statistics(self, request: Message) -> Message:
        models = [self._model(request.name, request.version)] if request.name else self._repository.all()
        found = []
        for bundle in (model.bundle for model in models):
            samples = await asyncio.to_thread(self._metrics.of, bundle.name, bundle.version)
            found.append(describe.statistics(bundle, samples))
        return translate.of_document("ModelStatisticsResponse", {"model_stats": found})

    async def _repository_index(self, request: Message) -> Message:
        found = [entry.model_dump() for entry in describe.index(self._repository, request.ready)]
        return translate.of_document("RepositoryIndexResponse", {"models": found})

    async def _repository_load(self, request: Message) -> Message:
        version = version_to_load(translate.parameters(request.parameters))
        await self._repository.load(request.model_name, version)
        return message("RepositoryModelLoadResponse")()

    async def _repository_unload(self, request: Message) -> Message:
        await self._repository.unload(request.model_name)
        return message("RepositoryModelUnloadResponse")()

    def _simple(
        self, name: str, function: Callable[[Message], Awaitable[Message]]
    ) -> Callable[[Message, Context], Awaitable[Message]]:
        async def handle(request: Message, context: Context) -> Message:
            with _Call(self, context, name) as call:
                try:
                    if name not in _OPEN:
                        self._require_key(context)
                    return await function(request)
                except Exception as error:
                    return await call.refuse(error)

        return handle

    def _model(self, name: str, version: str, record: RequestRecord | None = None) -> Model:
        model: Model = self._repository.get((f"{name}@{version}" if version else name) or None)
        if record is not None:
            record.model, record.version = model.bundle.name, model.bundle.version
        return model

    def _require_key(self, context: Context) -> None:
        if self._keys and not access.has_key(self._keys, {"headers": headers_of(context)}):
            raise Unauthorised("an API key is required: send the metadata authorization: Bearer KEY, or x-api-key: KEY")

    def count(self, path: str, record: RequestRecord, status: int, seconds: float) -> None:
        self._log.finished({"method": "gRPC", "path": path}, record, status, seconds)


class _Call:
    """One call, or one message of a stream: its record. It is counted and logged as a request over HTTP is."""

    def __init__(self, service: Service, context: Context, method: str, operation: str = UNKNOWN) -> None:
        self._service, self._context = service, context
        self._path, self._start = f"/{SERVICE.full_name}/{method}", perf_counter()
        headers = headers_of(context)
        self._own_id, trace_id = identify(headers)
        self.record = service.begin(headers, trace_id)
        self.record.operation = operation
        self._status: int | None = None  # until it has failed

    def __enter__(self) -> "_Call":
        set_context(self._own_id, self.record)
        self._service.running += 1
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._service.running -= 1
        status = self._status or (HTTPStatus.OK if error is None else CLIENT_DISCONNECTED)
        self._service.count(self._path, self.record, int(status), perf_counter() - self._start)

    def failed(self, error: Exception) -> tuple[Any, str]:
        """(code, message)"""
        if isinstance(error, GraftError):
            refusal = answer_to(error)
        else:
            log.error("unexpected %s", type(error).__name__, exc_info=error)
            detail = "an error in the service; its log has the cause under this request id"
            refusal = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-server-error", detail)
        self._status = refusal.status_code
        return _CODES.get(HTTPStatus(refusal.status_code), grpc.StatusCode.INVALID_ARGUMENT), refusal.message()

    async def refuse(self, error: Exception) -> NoReturn:
        code, text = self.failed(error)
        trailing = [(HEADER.decode(), self._own_id.decode())]
        if isinstance(error, QueueFull):
            trailing.append(("grpc-retry-pushback-ms", str(1000 * error.retry_after)))
        await self._context.abort(code, text, tuple(trailing))
        raise AssertionError  # abort has raised


def headers_of(context: Context) -> list[tuple[bytes, bytes]]:
    return [
        (name.encode(), value.encode() if isinstance(value, str) else value)
        for name, value in context.invocation_metadata() or ()
    ]


def _serialised(answer: Message) -> bytes:
    data: bytes = answer.SerializeToString()
    return data


def _id_in(body: bytes) -> str:
    """Of the request, as far as it can be read."""
    try:
        return str(translate.parse(body).id)
    except GraftError:
        return ""
