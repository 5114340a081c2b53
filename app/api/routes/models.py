"""/v1/models: the loaded models, their cards, reports, maps and drift."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.api.problems import documented
from app.api.schemas import (
    DriftResponse,
    MapResponse,
    ModelDetail,
    ModelList,
    ModelRef,
    ModelSummary,
    Refused,
    TuningResult,
)
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from app.inference.repository import Repository

router = APIRouter(prefix="/v1/models", tags=["models"])
_REFUSALS = documented(401, 404, 500)


async def _repository(request: Request) -> Repository:
    """`async` because FastAPI would call a plain function in a thread."""
    return request.app.state.repository  # type: ignore[no-any-return]


Models = Annotated[Repository, Depends(_repository)]


@router.get("", summary="The loaded models", responses=documented(401, 500))
async def list_models(repository: Models) -> ModelList:
    default = repository.get(None) if repository.ready else None
    return ModelList(
        models=[ModelSummary.summary(model, model is default) for model in repository.all()],
        refused=[Refused(bundle=bundle, reason=reason) for bundle, reason in repository.refused.items()],
    )


@router.get("/{name}", summary="One model: name or name@version", responses=_REFUSALS)
async def model(name: str, repository: Models) -> ModelDetail:
    model = repository.get(name)
    summary = ModelSummary.summary(model, repository.ready and model is repository.get(None))
    return ModelDetail(
        **summary.model_dump(),
        tuning=TuningResult.of(model.tuning),
        parts=model.bundle.parts,
        manifest=model.bundle.manifest.model_dump(mode="json"),
    )


class _Markdown(Response):
    media_type = "text/markdown"


class _Report(Response):
    """Written by the bundle's author, so untrusted: it may have any style, and run nothing."""

    media_type = "text/html"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers(headers)
        self.headers["Content-Security-Policy"] = (
            "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        )
        self.headers["X-Content-Type-Options"] = "nosniff"


@router.get("/{name}/card", summary="Model card, as Markdown", response_class=_Markdown, responses=_REFUSALS)
async def card(name: str, repository: Models) -> Response:
    bundle = repository.get(name).bundle
    bundle.require_part("card")
    return _Markdown(bundle.documents[CARD_FILE])


@router.get("/{name}/report", summary="Report of its quality, as a page", response_class=_Report, responses=_REFUSALS)
async def report(name: str, repository: Models) -> Response:
    bundle = repository.get(name).bundle
    bundle.require_part("report")
    return _Report(bundle.documents[REPORT_FILE])


@router.get("/{name}/map", summary="Map of the embeddings of held-out images", responses=_REFUSALS)
async def latent_map(name: str, repository: Models) -> MapResponse:
    bundle = repository.get(name).bundle
    bundle.require_part("map")
    assert bundle.map is not None
    return MapResponse.of(bundle, bundle.map)


@router.get(
    "/{name}/drift",
    summary="Whether recent images have drifted from the held-out ones",
    response_model_exclude_none=True,
    responses=documented(401, 404, 409, 500),
)
async def drift(name: str, repository: Models) -> DriftResponse:
    model = repository.get(name)
    drift = await repository.drift(model)
    watched = drift.watched
    alarm = None if watched is None else await repository.alarmed(model)
    accuracy = None if alarm else drift.accuracy  # nor once another worker has raised it
    return DriftResponse(
        model=ModelRef.of(model.bundle),
        images=drift.images,
        window=drift.window,
        discrepancy=drift.discrepancy,
        p_value=drift.p_value,
        drifted=drift.drifted,
        confidence_stability=drift.confidence,
        anomaly_score_stability=drift.anomaly_score,
        watched=watched and watched.images,
        martingale=watched and watched.martingale,
        martingale_alarm_at=watched and watched.threshold,
        martingale_over_time=watched and watched.history,
        alarm=alarm,
        alarm_after=watched and watched.alarm_at,
        estimated_accuracy=accuracy and accuracy[0],
        estimated_accuracy_interval=accuracy and accuracy[1:],
    )
