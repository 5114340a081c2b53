"""create_app(settings) builds the service from its parts. Nothing happens at import."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import problems
from app.api.deadlines import Deadlines
from app.api.fast_path import FastPath
from app.api.middleware import access
from app.api.middleware.body_limits import BodyLimits
from app.api.middleware.decompress import Decompress
from app.api.middleware.head import Head
from app.api.middleware.root_path import RootPath
from app.api.routes import embeddings, feedback, health, models, openai_embeddings, openapi, operations, pages
from app.api.v2 import routes as oip
from app.bundle import decoder
from app.bundle.session import cpu_limit
from app.bundle.spool import Spool
from app.errors import SettingsInvalid
from app.inference import providers
from app.inference.admission import Admission, Bytes
from app.inference.decoding import Decoding, InProcessDecoder, Limits, default_memory
from app.inference.feedback import Feedback
from app.inference.predictor import Predictor
from app.inference.recent import Recent
from app.inference.repository import Repository, repeat
from app.settings import PREFIX, Settings
from app.telemetry.logs import RequestLog, log
from app.telemetry.metrics import Metrics
from app.telemetry.requests import Begin, RequestRecord, Requests, Scope, begin_untraced

if TYPE_CHECKING:
    from app.api.rpc.server import RpcServer

_WRITE_METRICS_S = 0.25  # how late other workers see the counts of this one
_RESERVED = 8  # 1/8 of the queue and of the bytes for bodies is for requests of one small image
_DRIFT_S = 10  # between two tests for drift
_TUNE_S = 2  # until a new model is tuned
_OTLP = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPOSED = ("X-Request-ID", "Server-Timing", "Retry-After")  # headers that pages of other origins may read


def create_app(settings: Settings, on_freed: Callable[[], None] = lambda: None) -> FastAPI:
    """`on_freed` is called in a thread when the memory of a version was freed."""
    metrics = Metrics(__version__)
    tracing = _tracing(os.environ)
    request_log = RequestLog(metrics, settings.log_requests, trace=tracing.finished)
    threads = threads_per_worker(settings, cpu_limit())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="graft")
    decode_pool = ThreadPoolExecutor(threads, thread_name_prefix="graft-decode")
    limits = Limits(settings.max_pixels, settings.max_request_pixels, settings.decode_bytes(default_memory()))
    decoding = Decoding(
        decode_pool,
        limits,
        threads,
        partial(decoder.Decoder, settings.timeout_ms / 1000) if decoder.AVAILABLE else InProcessDecoder,
    )
    provider = providers.choose(settings.provider)
    repository = Repository(
        settings.models,
        default=settings.default_model,
        threads=threads,
        providers=provider,
        max_batch=settings.max_batch,
        pool=pool,
        metrics=metrics,
        control=settings.model_control,
        on_freed=on_freed,
        workers=settings.workers,
        tuned_threads=threads_to_try(settings, threads),
    )

    async def write() -> None:
        metrics.write()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        repository.open()  # checks the golden pairs, which also warms every graph
        tasks = [asyncio.create_task(repository.watch_drift(_DRIFT_S))]
        if settings.tune == "on":
            tasks.append(asyncio.create_task(repository.tune(_TUNE_S)))
        if settings.model_control == "poll":
            tasks.append(asyncio.create_task(repository.poll(settings.poll_s)))
        if metrics.shared:
            tasks.append(asyncio.create_task(repeat(_WRITE_METRICS_S, write, "metrics were not written")))
        async with _running(app.state.rpc):
            yield
        request_log.close()
        tracing.close()
        metrics.write()
        for task in tasks:
            task.cancel()
        repository.close()
        decoding.close()
        for executor in (pool, decode_pool):
            executor.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Graft",
        summary="A folder of images as a service: classify, with models that prove themselves at load",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # we have our own, which loads nothing from other hosts
        redoc_url=None,
        # Otherwise FastAPI looks for an exporter on every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings = settings
    app.state.repository = repository
    app.state.metrics = metrics
    app.state.deadlines = Deadlines()
    app.state.feedback = _feedback(settings)
    limit, largest = settings.max_queue, settings.max_images
    admission = Admission(limit, metrics.queued, reserved=min(limit // _RESERVED, limit - largest))
    app.state.predictor = Predictor(repository, admission, decoding, settings.max_batch)
    limit, largest = settings.max_bodies_mb * 1_000_000, settings.max_body_bytes
    room = Bytes(limit, reserved=min(limit // _RESERVED, limit - largest))
    app.add_middleware(BodyLimits, room=room, seconds=settings.body_timeout_s, deadlines=app.state.deadlines)
    app.add_middleware(Decompress, most=settings.max_body_bytes)
    problems.install(app)
    keys = access.keys_of(settings)
    metrics_keys = access.Keys([settings.metrics_key] if settings.metrics_key else [])
    if keys or metrics_keys:
        app.add_middleware(access.Access, keys=keys, metrics=metrics_keys)
    cors: dict[str, Any] = {
        "allow_origins": settings.origins,
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        "expose_headers": _EXPOSED,
    }
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors)
    if settings.root_path.strip("/"):
        app.add_middleware(RootPath, prefix=settings.root_path)
    app.add_middleware(Head)
    # Last added is outermost: every answer gets its id.
    app.add_middleware(Requests, on_finished=request_log.finished, begin=tracing.begin)
    parse_infer = partial(oip.parse_small_infer, metrics, settings.max_images)
    app.state.fast_path = FastPath(
        app,
        operations.BY_PATH,
        parse_infer,
        room=room,
        deadlines=app.state.deadlines,
        keys=keys,
        request_log=request_log,
        cors=partial(CORSMiddleware, **cors) if settings.cors_origins else None,
        is_traced=tracing.finished is not None,
    )
    app.state.rpc = _rpc_server(app, keys, request_log, room, begin=tracing.begin)
    openapi.correct_schema(app, keyed=bool(keys))
    for module in (operations, feedback, embeddings, openai_embeddings, models, health):
        app.include_router(module.router)
    app.include_router(oip.router)
    pages.install(app)
    return app


class _Tracing(NamedTuple):
    """How requests are traced; by default they are not."""

    begin: Begin = begin_untraced
    finished: Callable[[Scope, RequestRecord, int, float], None] | None = None
    close: Callable[[], None] = lambda: None


def _tracing(environment: Mapping[str, str]) -> _Tracing:
    """Requests are traced where OpenTelemetry's variables ask for it, and it is installed."""
    wanted = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(environment.get, _OTLP)) else "none")
    if wanted == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return _Tracing()
    try:
        from app.telemetry.spans import Spans, exporter_of  # here: the extra `otel`

        spans = Spans(exporter_of(environment), __version__)
    except ValueError as error:
        raise SettingsInvalid(str(error)) from None
    except ImportError as error:  # platforms set the variables for all their containers
        log.warning("no traces: OTEL_… variables ask for them, and %s is not installed (the extra otel)", error.name)
        return _Tracing()
    return _Tracing(spans.begin, spans.finished, spans.close)


def _rpc_server(
    app: FastAPI, keys: access.Keys, request_log: RequestLog, room: Bytes, begin: Begin
) -> "RpcServer | None":
    if app.state.settings.grpc_port is None:
        return None
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or clients could fill the log with lines of gRPC's own
    try:
        from app.api.rpc.server import RpcServer  # here, because it takes memory, and the extra `grpc`
    except ImportError as error:
        raise SettingsInvalid(
            f"{PREFIX}GRPC_PORT: {error.name} is not installed: run `make install-grpc`, or pip install 'graft[grpc]'"
        ) from None
    return RpcServer(app, keys, request_log, room, begin=begin)


@asynccontextmanager
async def _running(rpc: "RpcServer | None") -> AsyncIterator[None]:
    if rpc is not None:
        await rpc.start()
    yield
    if rpc is not None:
        await rpc.stop(0)


def _feedback(settings: Settings) -> Feedback | None:
    if settings.feedback is None:
        return None
    spool = Spool(settings.feedback, settings.feedback_mb * 1_000_000, f"{PREFIX}FEEDBACK")
    return Feedback(spool, Recent(settings.feedback_recent_mb * 1_000_000), settings.feedback_pictures)


def threads_per_worker(settings: Settings, cpus: int) -> int:
    """Each worker uses its share of the CPUs; otherwise their threads would wait for each other."""
    return settings.threads or max(1, cpus // settings.workers)


def threads_to_try(settings: Settings, threads: int) -> list[int]:
    """1, 2, 4 and so on, up to a worker's own; none without tuning."""
    if settings.tune == "off":
        return []
    return (
        [settings.threads]
        if settings.threads
        else [*(2**n for n in range(threads.bit_length()) if 2**n < threads), threads]
    )
