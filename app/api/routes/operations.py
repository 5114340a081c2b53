"""/v1/<operation>: classify, encode, reconstruct, anomaly, similar and predict."""

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
from app.api.problems import documented, problem_of_image
from app.api.request_body import Images, Partial, RequestImages
from app.api.schemas import (
    IMAGE_BODY,
    AnomalyResponse,
    ClassifyResponse,
    EncodeResponse,
    PredictResponse,
    ReconstructResponse,
    SimilarResponse,
    binary,
)
from app.bundle.bundle import Bundle
from app.bundle.decode import upright_size
from app.bundle.encode import png_of
from app.bundle.index import MOST_FOUND
from app.bundle.manifest import ANOMALY_MAP
from app.bundle.regions import Size
from app.bundle.scoring import AnomalyScore
from app.bundle.sets import By, SetOptions
from app.errors import Faults, MalformedRequest
from app.inference.answer import DISTANCES, EMBEDDING, ERRORS, EXPLANATION, LOGITS, NEAREST, RECONSTRUCTION
from app.inference.predictor import Prediction
from app.inference.results import (
    OUTPUT_OF,
    Fields,
    anomaly_fields,
    anomaly_scores,
    classify_fields,
    encode_fields,
    evidence_fields,
    heatmaps,
    in_domain_fields,
    map_output,
    maps,
    merge,
    region_fields,
    set_fields,
    similar_fields,
)

router = APIRouter(prefix="/v1", tags=["operations"])

PlanFunction = TypeVar("PlanFunction", bound=Callable[..., Plan])
_REFUSALS = (400, 401, 404, 406, 408, 409, 413, 415, 422, 429, 500, 503, 504)
TopK = Annotated[int | None, Query(ge=1, description="how many probabilities to return; unset, all")]
InDomain = Annotated[bool, Query(description="also return whether the anomaly score finds the image normal")]
Explain = Annotated[bool, Query(description="also return a map of what in the image speaks for the label")]
Heatmap = Annotated[bool, Query(description="also return a map of what the score finds anomalous")]
Regions = Annotated[
    bool, Query(description="also return the anomalous regions, in the picture's own pixels, once it is upright")
]
Rate = Annotated[
    float | None,
    Query(gt=0, lt=1, description="false-alarm rate that sets the threshold; unset, the model's own"),
]
Coverage = Annotated[
    float | None,
    Query(gt=0, lt=1, description="also return a set of labels that holds the truth at this rate, as 0.95"),
]
Sets = Annotated[
    By | None,
    Query(description="how sets are made: lac, the smallest on average; raps, larger for hard images. Unset, lac"),
]
Conditional = Annotated[bool, Query(description="the rate holds for every class, not over all images alone")]
Evidence = Annotated[bool, Query(description="also return the most similar image of the bundle's index")]
Neighbours = Annotated[int, Query(ge=1, le=MOST_FOUND, description="how many images to return")]
Thumbnails = Annotated[bool, Query(description="also return their thumbnails, if the index has them")]


def _route(
    operation: str, summary: str, response_model: type[BaseModel], *binary_types: str, binary_description: str = ""
) -> Callable[[PlanFunction], PlanFunction]:
    responses = documented(*_REFUSALS) | (binary(binary_description, *binary_types) if binary_types else {})
    route = router.post(
        f"/{operation}", summary=summary, response_model=response_model, responses=responses, openapi_extra=IMAGE_BODY
    )

    def register(plan: PlanFunction) -> PlanFunction:
        @wraps(plan)  # FastAPI reads the wrapped function's parameters
        async def handler(call: Call, images: RequestImages, **parameters: Any) -> Response:
            planned = plan(call, images, **parameters)
            if images.faults is None:
                return await call.run(images.files, planned)
            return await call.run_partial(images.files, images.faults, planned, none_good=_only_problems)

        route(handler)
        return plan

    return register


@_route("classify", "Label and confidence", ClassifyResponse)
def classify(
    call: ACall,
    images: Images,
    top_k: TopK = None,
    in_domain: InDomain = False,
    explain: Explain = False,
    evidence: Evidence = False,
    false_alarm_rate: Rate = None,
    coverage: Coverage = None,
    sets: Sets = None,
    conditional: Conditional = False,
    partial: Partial = False,
) -> Plan:
    call.choose_type(JSON, partial=partial)
    options = _set_options(call, coverage, sets, conditional)
    outputs = frozenset([LOGITS, *([DISTANCES] if in_domain else []), *([EXPLANATION] if explain else [])])
    needs = ["classify", *(["anomaly"] if in_domain else []), *(["explain"] if explain else [])]
    needs += ["sets"] if options else []

    def shape(result: Prediction) -> Response:
        fields = _classified(call, result, top_k, options)
        if in_domain:
            merge(fields, [in_domain_fields(each) for each in _scored(call, result, false_alarm_rate)])
        return _answer(result, fields)

    return _with_evidence(Plan(needs, outputs, shape), evidence)


@_route("encode", "Embedding of the image", EncodeResponse, NPY, binary_description="numpy's .npy of N × D float32")
def encode(call: ACall, images: Images, evidence: Evidence = False, partial: Partial = False) -> Plan:
    media_type = call.choose_type(JSON, NPY, partial=partial)

    def shape(result: Prediction) -> Response:
        if media_type == NPY:
            return npy_response(result.outputs[EMBEDDING])
        return _answer(result, encode_fields(result.outputs))

    return _with_evidence(Plan(["encode"], frozenset([EMBEDDING]), shape), evidence)


@_route(
    "reconstruct",
    "The image, reconstructed from its embedding",
    ReconstructResponse,
    PNG,
    binary_description="of one image",
)
def reconstruct(call: ACall, images: Images, evidence: Evidence = False, partial: Partial = False) -> Plan:
    media_type = call.choose_type(JSON, *if_single(PNG, images), partial=partial)

    def shape(result: Prediction) -> Response:
        drawn = result.outputs[RECONSTRUCTION]
        if media_type == PNG:
            return Response(pictures.unit_png(drawn[0]), media_type=PNG)
        return _answer(result, _reconstructed(result))

    return _with_evidence(Plan(["reconstruct"], frozenset([RECONSTRUCTION]), shape), evidence)


@_route(
    "anomaly",
    "Anomaly score",
    AnomalyResponse,
    PNG,
    NPY,
    binary_description="the heatmap of one image, or numpy's .npy of the maps, N × rows × columns float32",
)
def anomaly(
    call: ACall,
    images: Images,
    heatmap: Heatmap = False,
    regions: Regions = False,
    evidence: Evidence = False,
    false_alarm_rate: Rate = None,
    partial: Partial = False,
) -> Plan:
    single = if_single(PNG, images)  # maps of pictures in tiles have no common shape
    media_type = call.choose_type(JSON, *([NPY] if single or not call.bundle.tiled else []), *single, partial=partial)
    with_heatmap = heatmap or media_type in (PNG, NPY)
    drawn = map_output(call.bundle) if with_heatmap else RECONSTRUCTION
    needs = ["anomaly", *(["reconstruct"] if with_heatmap and drawn == RECONSTRUCTION else [])]
    needs += ["regions"] if regions else []
    outputs = [DISTANCES, *([drawn] if with_heatmap else []), *([ANOMALY_MAP] if regions else [])]

    def shape(result: Prediction) -> Response:
        if media_type == PNG:
            return Response(_heatmaps(result)[0], media_type=PNG)
        if media_type == NPY:
            each = maps(result.bundle, result.images, result.outputs)
            return npy_response(np.stack(list(each)) if result.bundle.tiled else each)
        fields = [anomaly_fields(each) for each in _scored(call, result, false_alarm_rate)]
        if heatmap:
            merge(fields, [{"heatmap": pictures.base64_of(picture)} for picture in _heatmaps(result)])
        if regions:
            merge(fields, _regions(result, false_alarm_rate))
        return _answer(result, fields)

    return _with_evidence(Plan(needs, frozenset(outputs), shape), evidence)


@_route("predict", "All operations that the model supports, in one pass", PredictResponse)
def predict(
    call: ACall,
    images: Images,
    top_k: TopK = None,
    explain: Explain = False,
    heatmap: Heatmap = False,
    regions: Regions = False,
    evidence: Evidence = False,
    false_alarm_rate: Rate = None,
    coverage: Coverage = None,
    sets: Sets = None,
    conditional: Conditional = False,
    partial: Partial = False,
) -> Plan:
    call.choose_type(JSON, partial=partial)
    options = _set_options(call, coverage, sets, conditional)
    supported = call.bundle.operations
    drawn = map_output(call.bundle)
    needs = ["predict", *(["explain"] if explain else []), *(["sets"] if options else [])]
    needs += ["reconstruct"] if heatmap and drawn == RECONSTRUCTION else []
    outputs = [output for operation, output in OUTPUT_OF.items() if operation in supported]
    needs += ["regions"] if regions else []
    outputs += [*([drawn] if heatmap else []), *([ANOMALY_MAP] if regions else [])]

    def shape(result: Prediction) -> Response:
        fields = encode_fields(result.outputs)
        if "classify" in supported:
            merge(fields, _classified(call, result, top_k, options))
        if "reconstruct" in supported:
            merge(fields, _reconstructed(result))
        if "anomaly" in supported:
            scores = _scored(call, result, false_alarm_rate)
            merge(fields, [anomaly_fields(each) | in_domain_fields(each) for each in scores])
        if heatmap:
            merge(fields, [{"heatmap": pictures.base64_of(picture)} for picture in _heatmaps(result)])
        if regions:
            merge(fields, _regions(result, false_alarm_rate))
        return _answer(result, fields)

    return _with_evidence(Plan(needs, frozenset([*outputs, *([EXPLANATION] if explain else [])]), shape), evidence)


@_route("similar", "The most similar images of the bundle's index", SimilarResponse)
def similar(
    call: ACall,
    images: Images,
    k: Neighbours = 5,
    thumbnails: Thumbnails = False,
    partial: Partial = False,
) -> Plan:
    call.choose_type(JSON, partial=partial)

    def shape(result: Prediction) -> Response:
        found = similar_fields(result.bundle, result.outputs, k, thumbnails)
        return _results(result, [{"similar": each} for each in found])

    return Plan(["similar"], frozenset([NEAREST]), shape)


def _with_evidence(plan: Plan, evidence: bool) -> Plan:
    """`_answer` adds it to the results."""
    return Plan([*plan.needs, "similar"], plan.outputs | {NEAREST}, plan.shape) if evidence else plan


def _answer(result: Prediction, fields: list[Fields]) -> Response:
    if NEAREST in result.outputs:
        merge(fields, evidence_fields(result.bundle, result.outputs))
    return _results(result, fields)


def _results(result: Prediction, fields: list[Fields]) -> Response:
    return json_response(result.bundle, _with_problems(fields, result.faults) if result.faults else fields)


def _with_problems(fields: Sequence[Fields], faults: Faults) -> list[Fields]:
    """The results of the good images, and in the place of each bad one its problem."""
    good = iter(fields)
    count = len(fields) + len(faults)
    return [problem_of_image(faults[at], at) if at in faults else next(good) for at in range(count)]


def _only_problems(bundle: Bundle, faults: Faults) -> Response:
    return json_response(bundle, _with_problems([], faults))


def _set_options(call: Call, coverage: float | None, sets: By | None, conditional: bool) -> SetOptions | None:
    """Refuses a coverage that cannot be promised before any image is decoded."""
    if coverage is None:
        if sets is not None or conditional:
            raise MalformedRequest("query: sets and conditional say how prediction sets are made: give coverage, too")
        return None
    options, calibrated = SetOptions(coverage, sets or "lac", conditional), call.bundle.sets
    try:
        if calibrated is not None:
            calibrated.require(options)
    except ValueError as error:
        raise MalformedRequest(f"coverage: {error}") from None
    return options


def _classified(call: Call, result: Prediction, top_k: int | None, options: SetOptions | None) -> list[Fields]:
    bundle = result.bundle
    fields = classify_fields(bundle, result.outputs, top_k)
    if options is not None:
        merge(fields, set_fields(bundle, result.images, result.outputs, options))
    call.metrics.classified(bundle.name, bundle.version, [each["confidence"] for each in fields])
    if EXPLANATION in result.outputs:
        height, width, _ = bundle.manifest.input.shape
        for each, shares in zip(fields, result.outputs[EXPLANATION], strict=True):
            for label in each.get("labels", [each]):  # of independent labels, each that the image has
                map_ = pictures.explanation_png(shares[label["index"]], height, width)
                label["explanation"] = pictures.base64_of(map_)
    return fields


def _scored(call: Call, result: Prediction, false_alarm_rate: float | None) -> list[AnomalyScore]:
    scores = anomaly_scores(result.bundle, result.outputs, false_alarm_rate)
    call.metrics.scored(result.bundle.name, result.bundle.version, [score.score for score in scores])
    return scores


def _reconstructed(result: Prediction) -> list[Fields]:
    pairs = zip(result.outputs[RECONSTRUCTION], result.outputs[ERRORS].tolist(), strict=True)
    return [{"image": pictures.base64_of(pictures.unit_png(image)), "error": error} for image, error in pairs]


def _regions(result: Prediction, false_alarm_rate: float | None) -> list[Fields]:
    sizes = [Size(*upright_size(data)) for data in result.files]
    return region_fields(result.bundle, result.outputs, sizes, false_alarm_rate)


def _heatmaps(result: Prediction) -> list[bytes]:
    return [png_of(grey[..., None]) for grey in heatmaps(result.bundle, result.images, result.outputs)]


_OPERATIONS = (classify, encode, reconstruct, anomaly, similar, predict)
BY_PATH = {f"{router.prefix}/{each.__name__}": each for each in _OPERATIONS}


def if_single(media_type: str, images: Sized) -> tuple[str, ...]:
    """The media type, if there is a single image: a PNG is the answer to one."""
    return (media_type,) if len(images) == 1 else ()


def npy_response(array: np.ndarray) -> Response:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)


def json_response(bundle: Bundle, results: Sequence[Fields], **more: object) -> Response:
    """Leaves out fields that are None. Tests validate it by the route's response_model; doing so here would take longer
    than everything else."""
    ref = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}
    document = {"model": ref, "results": results, **more}
    return Response(to_json(document, exclude_none=True, inf_nan_mode="null"), media_type=JSON)
