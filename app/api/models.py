"""/v1/models: what is loaded, and everything that is known of it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.api.error_handlers import documented
from app.api.schemas import ModelDetail, ModelList, ModelSummary, Refused
from app.inference.repository import Repository

router = APIRouter(prefix="/v1/models", tags=["models"])


async def _repository(request: Request) -> Repository:
    """`async`, or FastAPI would find it in a thread."""
    return request.app.state.repository  # type: ignore[no-any-return]


Models = Annotated[Repository, Depends(_repository)]


@router.get("", summary="What is loaded", responses=documented(401, 500))
async def list_models(repository: Models) -> ModelList:
    default = repository.get(None) if repository.ready else None
    return ModelList(
        models=[ModelSummary.summary(model, model is default) for model in repository.all()],
        refused=[Refused(bundle=bundle, reason=reason) for bundle, reason in repository.refused.items()],
    )


@router.get("/{name}", summary="One model: name or name@version", responses=documented(401, 404, 500))
async def model(name: str, repository: Models) -> ModelDetail:
    found = repository.get(name)
    summary = ModelSummary.summary(found, repository.ready and found is repository.get(None))
    return ModelDetail(**summary.model_dump(), manifest=found.bundle.manifest.model_dump(mode="json"))
