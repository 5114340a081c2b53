"""/healthz: the process lives. /readyz: it can answer."""

from fastapi import APIRouter

from app.api.error_handlers import documented
from app.api.models import Models
from app.api.schemas import Health
from app.errors import NotReady

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process lives", responses=documented(500))
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", summary="Models are loaded, verified and warm", responses=documented(500, 503))
async def readyz(repository: Models) -> Health:
    if not repository.ready:
        raise NotReady("no model can be served: " + ("; ".join(repository.refused.values()) or "none was found"))
    return Health(status="ok")
