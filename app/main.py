"""create_app(settings): the only wiring. Nothing happens at import."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import problems
from app.api.deadlines import Deadlines
from app.api.dispatch import Dispatch
from app.api.fast_path import FastPath
from app.api.middleware import access
from app.api.middleware.body_limits import BodyLimits
from app.api.middleware.decompress import Decompress
from app.api.middleware.head import Head
from app.api.middleware.root_path import RootPath
from app.api.routes import embeddings, health, models, openapi, operations, pages
from app.api.v2 import routes as oip
from app.bundle import decoder
from app.bundle.cgroup import decoding_share
from app.bundle.session import cpu_limit
from app.inference import providers
from app.inference.admission import Admission, Bytes
from app.inference.decoding import Decoding, InProcessDecoder, Limits
from app.inference.predictor import Predictor
from app.inference.repository import Repository, again_and_again
from app.settings import Settings
from app.telemetry.logs import RequestLog
from app.telemetry.metrics import Metrics
from app.telemetry.requests import Requests

_WRITTEN_S = 0.25  # after which other workers know what is counted here
_RESERVED = 8  # one part in so many, of the queue and of bodies' bytes, is for requests of one small image
_DRIFT_S = 10  # between two looks at what was served
_EXPOSED = ("X-Request-ID", "Server-Timing", "Retry-After")  # to other origins' pages, beside what is always


def create_app(settings: Settings, on_freed: Callable[[], None] = lambda: None) -> FastAPI:
    """`on_freed` runs in a thread whenever a version's memory has become free."""
    metrics = Metrics(__version__)
    request_log = RequestLog(metrics, settings.log_requests)
    threads = threads_each(settings, cpu_limit())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="graft")
    small = ThreadPoolExecutor(threads, thread_name_prefix="graft-decode")
    limits = Limits(settings.max_pixels, settings.max_request_pixels, settings.decode_bytes(decoding_share()))
    decoding = Decoding(
        small,
        limits,
        threads,
        partial(decoder.Decoder, settings.timeout_ms / 1000) if decoder.AVAILABLE else InProcessDecoder,
    )
    chosen = providers.choose(settings.provider)
    repository = Repository(
        settings.models,
        settings.default_model,
        threads,
        chosen,
        settings.max_batch,
        pool,
        metrics,
        settings.model_control,
        on_freed,
    )

    async def write() -> None:
        metrics.write()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        repository.open()  # verifies golden pairs, which warms every graph
        going_on = [asyncio.create_task(repository.watch_drift(_DRIFT_S))]
        if settings.model_control == "poll":
            going_on.append(asyncio.create_task(repository.poll(settings.poll_s)))
        if metrics.shared:
            going_on.append(asyncio.create_task(again_and_again(_WRITTEN_S, write, "metrics were not written")))
        yield
        request_log.close()
        metrics.write()
        for task in going_on:
            task.cancel()
        repository.close()
        decoding.close()
        for each in (pool, small):
            each.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Graft",
        summary="A folder of images as a service: classify, with models that prove themselves at load",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # our own, which needs nothing from outside
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # or it asks on every request for someone's
    )
    app.state.settings = settings
    app.state.repository = repository
    app.state.metrics = metrics
    app.state.deadlines = Deadlines()
    most, largest = settings.max_queue, settings.max_images
    admission = Admission(most, metrics.queued, reserved=min(most // _RESERVED, most - largest))
    app.state.predictor = Predictor(repository, admission, decoding, settings.max_batch)
    app.add_middleware(Dispatch, operations=operations.BY_PATH, infer=oip.infer)
    most, largest = settings.max_bodies_mb * 1_000_000, settings.max_body_bytes
    room = Bytes(most, reserved=min(most // _RESERVED, most - largest))
    app.add_middleware(BodyLimits, room=room, seconds=settings.body_timeout_s, deadlines=app.state.deadlines)
    app.add_middleware(Decompress, most=settings.max_body_bytes)
    problems.install(app)
    keys = access.keys_of(settings)
    own = access.Keys([settings.metrics_key] if settings.metrics_key else [])
    if keys or own:
        app.add_middleware(access.Access, keys=keys, metrics=own)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    if settings.root_path.strip("/"):
        app.add_middleware(RootPath, prefix=settings.root_path)
    app.add_middleware(Head)
    app.add_middleware(Requests, on_finished=request_log.finished)  # last added is outermost: every answer gets its id
    parse_infer = partial(oip.parse_small_infer, metrics, settings.max_images)
    app.state.fast_path = FastPath(app, operations.BY_PATH, parse_infer, room, app.state.deadlines, keys, request_log)
    openapi.correct_schema(app, keyed=bool(keys))
    for module in (operations, embeddings, models, health):
        app.include_router(module.router)
    app.include_router(oip.router)
    pages.install(app)
    return app


def threads_each(settings: Settings, cpus: int) -> int:
    """Workers that each took every CPU would wait for one another."""
    return settings.threads or max(1, cpus // settings.workers)
