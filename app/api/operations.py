"""/v1/<operation>: what a model does with images."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.api.error_handlers import documented
from app.api.payload import Images
from app.api.schemas import IMAGE_BODY, ClassifyResponse
from app.inference.predictor import Predictor

router = APIRouter(prefix="/v1", tags=["operations"])


def _predictor(request: Request) -> Predictor:
    return request.app.state.predictor  # type: ignore[no-any-return]


Predictions = Annotated[Predictor, Depends(_predictor)]
Model = Annotated[str | None, Query(description="name or name@version; unset, the default model")]
TopK = Annotated[int | None, Query(ge=1, description="how many probabilities to return; unset, all")]


@router.post(
    "/classify",
    summary="Which label, and how sure",
    responses=documented(400, 404, 409, 413, 415, 422, 500, 503),
    openapi_extra=IMAGE_BODY,
)
async def classify(images: Images, predictor: Predictions, model: Model = None, top_k: TopK = None) -> ClassifyResponse:
    bundle, found = await predictor.classify(images, model)
    return ClassifyResponse.of(bundle, found, top_k)
