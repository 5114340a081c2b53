"""/v1/feedback: the right label of an image, kept for `graft-train learn`."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.api.call import ACall, Call
from app.api.problems import documented
from app.api.request_body import read_images
from app.api.request_forgery import is_allowed
from app.api.schemas import FeedbackResponse, FeedbackResult, ModelRef, optional_image_body
from app.errors import CrossOrigin, FeedbackNotAllowed, MalformedRequest, RequestForgotten
from app.inference.feedback import Feedback, is_of_anomaly, outputs_for, records
from app.settings import PREFIX, Settings
from app.telemetry.requests import current_record
from app.telemetry.requests import request_id as own_id

router = APIRouter(prefix="/v1", tags=["operations"])

Label = Annotated[
    str,
    Query(min_length=1, description="the right label of each image sent; or, of the anomaly score, sound or defect"),
]
RequestId = Annotated[
    str | None,
    Query(description="X-Request-ID of an answer: its image is meant, and no body is sent; of the latest requests"),
]
Index = Annotated[int, Query(ge=0, description="which image of that request")]


async def _feedback(request: Request) -> Feedback:
    """A dependency that comes before the body is read."""
    feedback: Feedback | None = request.app.state.feedback
    settings: Settings = request.app.state.settings
    if feedback is None:
        raise FeedbackNotAllowed(f"no feedback is collected here: set {PREFIX}FEEDBACK to a folder for it")
    if not is_allowed(request.headers, request.scope["scheme"], settings.origins):
        raise CrossOrigin(
            f"pages of other origins may not give feedback; {PREFIX}CORS_ORIGINS names those that may, as "
            "https://host:port"
        )
    return feedback


@router.post(
    "/feedback",
    summary="The right label of an image, to learn from",
    responses=documented(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=optional_image_body(),
)
async def feedback(
    feedback: Annotated[Feedback, Depends(_feedback)],
    call: ACall,
    request: Request,
    label: Label,
    request_id: RequestId = None,
    index: Index = 0,
) -> FeedbackResponse:
    images = await read_images(request) if request_id is None else _remembered(feedback, call, request_id, index)
    model = call.require_model()
    of_anomaly = is_of_anomaly(model.bundle, label)
    current_record().images = len(images)
    work = call.predictor.predict(images, model, outputs_for(model.bundle))
    result = await call.within_deadline(work)
    found = records(result, label, request_id or own_id.get(), first=index, feedback=feedback, of_anomaly=of_anomaly)
    await asyncio.to_thread(feedback.spool.append, found)  # when it has begun it is not given up
    results = [FeedbackResult(label=each.label, predicted=each.predicted or "") for each in found]
    return FeedbackResponse(model=ModelRef.of(model.bundle), results=results)


def _remembered(feedback: Feedback, call: Call, request_id: str, index: int) -> Sequence[bytes]:
    """The image, and the call's model where it names none."""
    known = feedback.recent.find(request_id)
    if known is None:
        raise RequestForgotten(
            f"request_id: {request_id[:128]!r} is none of the latest requests that this worker remembers "
            f"({PREFIX}FEEDBACK_RECENT_MB): send the image"
        )
    name, files = known
    if index >= len(files):
        raise MalformedRequest(f"index: {index:,}; the request had {len(files):,} images, counted from 0")
    call.model = call.model or name
    return files[index : index + 1]
