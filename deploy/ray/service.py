"""The service as an application of Ray Serve: `serve run --app-dir . deploy/ray/serve.yaml`.

Every replica is the app that `python -m app` serves. Which versions it serves is written in the configuration and
nowhere else, so that a replica which starts tomorrow serves what those of today do.
"""

import tempfile
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.main import create_app
from app.settings import load_settings


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: Path  # folder of bundles, at the same path on every machine
    versions: list[str] = Field(min_length=1)  # NAME@VERSION: all that is served
    replicas: tuple[int, int] = (1, 4)  # at least, and at most
    cpus: int = Field(1, ge=1)  # of each replica
    settings: dict[str, str | int | float] = {}  # others of the service's, by their names


def service(arguments: Arguments) -> Application:
    settings = load_settings(**{"threads": arguments.cpus, **arguments.settings})
    if settings.model_control != "none":
        raise ValueError(
            "model_control: a call, or a look at the folder, would change one replica of many: name versions"
        )
    for version in arguments.versions:
        _folder(arguments.models, version)

    def build() -> FastAPI:
        app = create_app(settings.model_copy(update={"models": _only(arguments.models, arguments.versions)}))
        app.add_middleware(_IdOnce)
        return app

    least, most = arguments.replicas
    deployment = serve.deployment(
        serve.ingress(build)(),
        name="graft",
        # A replica holds one batch that runs and one that gathers; the rest waits at the proxy for the first free
        # replica. At half a batch in flight on average, there is room for a burst.
        max_ongoing_requests=2 * settings.max_batch,
        autoscaling_config=AutoscalingConfig(
            min_replicas=least, max_replicas=most, target_ongoing_requests=settings.max_batch / 2
        ),
        max_queued_requests=settings.max_queue,
        ray_actor_options={"num_cpus": arguments.cpus},
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment.bind()


class _IdOnce:
    """Ray's proxy gives each request the id that the app takes over, and puts it on the answer itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, without_id)


def _folder(models: Path, version: str) -> Path:
    name, _, number = version.partition("@")
    folder = models / name / number
    if not number or not folder.is_dir():
        raise ValueError(f"{version}: write NAME@VERSION, of what is in {models}; there is no {folder}")
    return folder


def _only(models: Path, versions: list[str]) -> Path:
    """A models folder of those versions alone, for the life of the process."""
    chosen = Path(tempfile.mkdtemp(prefix="graft-"))
    for version in versions:
        folder = _folder(models, version)
        (chosen / folder.parent.name).mkdir(exist_ok=True)
        (chosen / folder.parent.name / folder.name).symlink_to(folder.resolve())
    return chosen
