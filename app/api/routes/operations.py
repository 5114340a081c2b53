"""/v1/<operation>: what a model does with images."""

import io
from collections.abc import Callable, Sequence, Sized
from functools import wraps
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from pydantic_core import to_json

from app.api import pictures
from app.api.call import ACall, Call, Plan
from app.api.negotiation import JSON, NPY, PNG
from app.api.problems import documented
from app.api.request_body import Images
from app.api.schemas import (
    IMAGE_BODY,
    AnomalyResponse,
    ClassifyResponse,
    EncodeResponse,
    PredictResponse,
    ReconstructResponse,
    binary,
)
from app.bundle.bundle import Bundle
from app.bundle.scoring import AnomalyScore
from app.inference.answer import DISTANCES, EMBEDDING, ERRORS, EXPLANATION, LOGITS, RECONSTRUCTION
from app.inference.predictor import Prediction
from app.inference.results import (
    OUTPUT_OF,
    Fields,
    anomaly_fields,
    anomaly_scores,
    classify_fields,
    encode_fields,
    in_domain_fields,
    merge,
)

router = APIRouter(prefix="/v1", tags=["operations"])

Planned = TypeVar("Planned", bound=Callable[..., Plan])
_REFUSALS = (400, 401, 404, 406, 408, 409, 413, 415, 422, 429, 500, 503, 504)
TopK = Annotated[int | None, Query(ge=1, description="how many probabilities to return; unset, all")]
InDomain = Annotated[bool, Query(description="also say whether the anomaly score takes it for one of the model's")]
Explain = Annotated[bool, Query(description="also give a map of what in the image speaks for the label")]
Heatmap = Annotated[bool, Query(description="also give a map of where the reconstruction is off")]
Rate = Annotated[
    float | None,
    Query(gt=0, lt=1, description="false-alarm rate to judge by; unset, the model's own"),
]


def _route(
    operation: str, summary: str, model: type[BaseModel], *kinds: str, says: str = ""
) -> Callable[[Planned], Planned]:
    responses = documented(*_REFUSALS) | (binary(says, *kinds) if kinds else {})
    route = router.post(
        f"/{operation}", summary=summary, response_model=model, responses=responses, openapi_extra=IMAGE_BODY
    )

    def registered(plan: Planned) -> Planned:
        @wraps(plan)  # FastAPI reads the parameters of what is wrapped
        async def answered(call: Call, images: list[bytes], **parameters: Any) -> Response:
            return await call.run(images, plan(call, images, **parameters))

        route(answered)
        return plan

    return registered


@_route("classify", "Which label, and how sure", ClassifyResponse)
def classify(
    call: ACall,
    images: Images,
    top_k: TopK = None,
    in_domain: InDomain = False,
    explain: Explain = False,
    false_alarm_rate: Rate = None,
) -> Plan:
    call.choose_type(JSON)
    wanted = frozenset([LOGITS, *([DISTANCES] if in_domain else []), *([EXPLANATION] if explain else [])])
    needs = ["classify", *(["anomaly"] if in_domain else []), *(["explain"] if explain else [])]

    def shape(found: Prediction) -> Response:
        fields = _classified(call, found, top_k)
        if in_domain:
            merge(fields, [in_domain_fields(each) for each in _judged(call, found, false_alarm_rate)])
        return as_json(found.bundle, fields)

    return Plan(needs, wanted, shape)


@_route("encode", "The image as a few numbers", EncodeResponse, NPY, says="numpy's .npy of N × D float32")
def encode(call: ACall, images: Images) -> Plan:
    form = call.choose_type(JSON, NPY)

    def shape(found: Prediction) -> Response:
        if form == NPY:
            return as_npy(found.outputs[EMBEDDING])
        return as_json(found.bundle, encode_fields(found.outputs))

    return Plan(["encode"], frozenset([EMBEDDING]), shape)


@_route("reconstruct", "The image, drawn from those numbers", ReconstructResponse, PNG, says="of one image")
def reconstruct(call: ACall, images: Images) -> Plan:
    form = call.choose_type(JSON, *one(PNG, images))

    def shape(found: Prediction) -> Response:
        drawn = found.outputs[RECONSTRUCTION]
        if form == PNG:
            return Response(pictures.unit_png(drawn[0]), media_type=PNG)
        return as_json(found.bundle, _reconstructed(found))

    return Plan(["reconstruct"], frozenset([RECONSTRUCTION]), shape)


@_route("anomaly", "How unlike the normal images", AnomalyResponse, PNG, says="the heatmap of one image")
def anomaly(call: ACall, images: Images, heatmap: Heatmap = False, false_alarm_rate: Rate = None) -> Plan:
    form = call.choose_type(JSON, *one(PNG, images))
    mapped = heatmap or form == PNG
    needs = ["anomaly", *(["reconstruct"] if mapped else [])]

    def shape(found: Prediction) -> Response:
        if form == PNG:
            return Response(_heatmaps(found)[0], media_type=PNG)
        fields = [anomaly_fields(each) for each in _judged(call, found, false_alarm_rate)]
        if heatmap:
            merge(fields, [{"heatmap": pictures.base64_of(picture)} for picture in _heatmaps(found)])
        return as_json(found.bundle, fields)

    return Plan(needs, frozenset([DISTANCES, *([RECONSTRUCTION] if mapped else [])]), shape)


@_route("predict", "All of it in one pass: what the model cannot say is absent", PredictResponse)
def predict(
    call: ACall,
    images: Images,
    top_k: TopK = None,
    explain: Explain = False,
    heatmap: Heatmap = False,
    false_alarm_rate: Rate = None,
) -> Plan:
    call.choose_type(JSON)
    able = call.bundle.operations
    needs = ["predict", *(["explain"] if explain else []), *(["reconstruct"] if heatmap else [])]
    wanted = [output for operation, output in OUTPUT_OF.items() if operation in able]

    def shape(found: Prediction) -> Response:
        fields = encode_fields(found.outputs)
        if "classify" in able:
            merge(fields, _classified(call, found, top_k))
        if "reconstruct" in able:
            merge(fields, _reconstructed(found))
        if "anomaly" in able:
            verdicts = _judged(call, found, false_alarm_rate)
            merge(fields, [anomaly_fields(each) | in_domain_fields(each) for each in verdicts])
        if heatmap:
            merge(fields, [{"heatmap": pictures.base64_of(picture)} for picture in _heatmaps(found)])
        return as_json(found.bundle, fields)

    return Plan(needs, frozenset([*wanted, *([EXPLANATION] if explain else [])]), shape)


def _classified(call: Call, found: Prediction, top_k: int | None) -> list[Fields]:
    bundle = found.bundle
    fields = classify_fields(bundle, found.outputs, top_k)
    call.metrics.classified(bundle.name, bundle.version, [each["confidence"] for each in fields])
    if EXPLANATION in found.outputs:
        height, width, _ = bundle.manifest.input.shape
        for each, shares in zip(fields, found.outputs[EXPLANATION], strict=True):
            each["explanation"] = pictures.base64_of(pictures.explanation_png(shares[each["index"]], height, width))
    return fields


def _judged(call: Call, found: Prediction, false_alarm_rate: float | None) -> list[AnomalyScore]:
    verdicts = anomaly_scores(found.bundle, found.outputs, false_alarm_rate)
    call.metrics.scored(found.bundle.name, found.bundle.version, [verdict.score for verdict in verdicts])
    return verdicts


def _reconstructed(found: Prediction) -> list[Fields]:
    both = zip(found.outputs[RECONSTRUCTION], found.outputs[ERRORS].tolist(), strict=True)
    return [{"image": pictures.base64_of(pictures.unit_png(image)), "error": error} for image, error in both]


def _heatmaps(found: Prediction) -> list[bytes]:
    both = zip(found.images, found.outputs[RECONSTRUCTION], strict=True)
    return [pictures.error_png(image, drawn) for image, drawn in both]


BY_PATH = {f"{router.prefix}/{each.__name__}": each for each in (classify, encode, reconstruct, anomaly, predict)}


def one(kind: str, images: Sized) -> tuple[str, ...]:
    """A picture is an answer to one image."""
    return (kind,) if len(images) == 1 else ()


def as_npy(array: np.ndarray) -> Response:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)


def as_json(bundle: Bundle, results: Sequence[Fields], **more: object) -> Response:
    """What is None is left out. Written as it is, for checking it anew would take longer than all else: that it is as
    the route's response_model says, tests see to."""
    ref = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}
    answer = {"model": ref, "results": results, **more}
    return Response(to_json(answer, exclude_none=True, inf_nan_mode="null"), media_type=JSON)
