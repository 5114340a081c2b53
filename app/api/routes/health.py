"""/healthz: the process is alive. /readyz: it can answer. /metrics: Prometheus."""

from fastapi import APIRouter, Request, Response

from app.api.problems import documented
from app.api.routes.models import Models
from app.api.schemas import Health
from app.errors import NotReady
from app.inference.repository import Repository
from app.telemetry.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process is alive", responses=documented(500))
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", summary="Models are loaded, verified and warm", responses=documented(500, 503))
async def readyz(repository: Models) -> Health:
    require_ready(repository)
    return Health(status="ok")


def require_ready(repository: Repository) -> None:
    if repository.leaving:
        raise NotReady("this process is shutting down")
    if not repository.ready:
        raise NotReady("no model can be served: " + ("; ".join(repository.refused.values()) or "no bundle was found"))


class _Exposition(Response):
    media_type = CONTENT_TYPE


@router.get("/metrics", summary="Metrics for Prometheus", response_class=_Exposition, responses=documented(401, 500))
def metrics(request: Request) -> _Exposition:
    # Not `async`, so that FastAPI runs it in a thread: it reads the workers' files.
    collected: Metrics = request.app.state.metrics
    return _Exposition(collected.exposition())
