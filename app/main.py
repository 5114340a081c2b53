"""create_app(settings): the only wiring. Nothing happens at import."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.api import docs, error_handlers, health, models, operations
from app.inference.predictor import Predictor
from app.inference.repository import Repository
from app.observability import RequestIds
from app.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    repository = Repository(settings.models, settings.default_model, settings.threads)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        repository.open()  # verifies golden pairs, which warms every graph
        yield

    app = FastAPI(
        title="Graft",
        summary="A folder of images as a service: classify, with models that prove themselves at load",
        version=__version__,
        lifespan=lifespan,
        root_path=settings.root_path,
        docs_url=None,  # our own, which needs nothing from outside
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.repository = repository
    app.state.predictor = Predictor(repository, settings.max_pixels)
    error_handlers.install(app)
    app.add_middleware(RequestIds)  # last added is outermost: every answer gets its id
    docs.tell_the_truth(app)
    for module in (operations, models, health, docs):
        app.include_router(module.router)
    return app
