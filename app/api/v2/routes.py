"""The protocol's addresses. Bodies are read raw; only where they change something is their content type looked at."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from app.api.call import Call, Plan, Timeout
from app.api.cross_origin import guarded
from app.api.middleware.root_path import PROTOCOL
from app.api.request_body import json_of, parsed, read
from app.api.routes.health import require_ready
from app.api.routes.models import Models
from app.api.v2 import describe
from app.api.v2.schemas import (
    INDEX_BODY,
    INFER_ANSWER,
    INFER_BODY,
    LOAD_BODY,
    VERSION_PARAMETER,
    IndexEntry,
    ModelHealth,
    ModelMetadata,
    ModelStatistics,
    ServerHealth,
    ServerMetadata,
    failures,
)
from app.api.v2.tensors import (
    IMAGE,
    IMAGE_TYPE,
    SCORE,
    Work,
    best,
    most_values,
    raw_question,
    work_of,
)
from app.api.v2.wire import LENGTH, Question, answer_of, json_length, parameters_of, question_of
from app.bundle.bundle import Bundle
from app.errors import MalformedRequest
from app.inference import results
from app.inference.answer import DISTANCES, LOGITS, PROBABILITIES, Outputs
from app.inference.model import Model
from app.telemetry.metrics import Metrics

router = APIRouter(prefix=PROTOCOL, tags=["open inference protocol"])

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
_MOST_WORDS = 100  # commas and brackets in the body of a call to the repository
Handler = TypeVar("Handler", bound=Callable[..., Any])


async def _call(request: Request, name: str, timeout_ms: Timeout = None) -> Call:
    return Call(request, _wanted(request, name), timeout_ms)


async def _model(request: Request, name: str, repository: Models) -> Model:
    return repository.get(_wanted(request, name))


def _wanted(request: Request, name: str) -> str:
    version = request.path_params.get("version")
    return name if version is None else f"{name}@{version}"


ACall = Annotated[Call, Depends(_call)]
AModel = Annotated[Model, Depends(_model)]


def _of_model(
    method: str, rest: str, summary: str, extra: dict[str, Any] | None = None, **told: Any
) -> Callable[[Handler], Handler]:
    """A route of a model, and the same of one version of it."""

    def add(handler: Handler) -> Handler:
        given = extra or {}
        pinned = {**given, "parameters": [*given.get("parameters", ()), VERSION_PARAMETER]}
        for path, described in (("/models/{name}", given), ("/models/{name}/versions/{version}", pinned)):
            route = getattr(router, method)(path + rest, summary=summary, openapi_extra=described, **told)
            route(handler)
        return handler

    return add


@router.get("", summary="The server", responses=failures(401, 500))
@router.get("/", include_in_schema=False)
async def server(request: Request) -> ServerMetadata:
    return ServerMetadata(name="graft", version=request.app.version, extensions=EXTENSIONS)


@router.get("/health/live", summary="The process lives", responses=failures(500))
async def live(repository: Models) -> ServerHealth:
    return ServerHealth(live=True, ready=repository.ready)


@router.get("/health/ready", summary="Models are loaded, verified and warm", responses=failures(500, 503))
async def ready(repository: Models) -> ServerHealth:
    require_ready(repository)
    return ServerHealth(live=True, ready=True)


@_of_model("get", "", "Which tensors a model takes and gives", responses=failures(401, 404, 500, 503))
async def metadata(model: AModel, repository: Models) -> ModelMetadata:
    name = model.bundle.name
    return describe.metadata(model.bundle, [m.bundle.version for m in repository.all() if m.bundle.name == name])


@_of_model("get", "/ready", "A model answers", responses=failures(401, 404, 500, 503))
async def model_ready(model: AModel) -> ModelHealth:
    return ModelHealth(name=model.bundle.name, ready=True)


@_of_model("get", "/config", "A model's configuration, as Triton has it", responses=failures(401, 404, 500, 503))
async def config(model: AModel, request: Request) -> dict[str, Any]:
    return describe.configuration(model.bundle, request.app.state.settings.max_images)


@_of_model("get", "/stats", "What a model has done, as Triton has it", responses=failures(401, 404, 500, 503))
def stats(model: AModel, request: Request) -> ModelStatistics:
    """Not `async`, so that the workers' files are read in a thread."""
    bundle = model.bundle
    samples = request.app.state.metrics.of(bundle.name, bundle.version)
    return ModelStatistics(model_stats=[describe.statistics(bundle, samples)])


@_of_model(
    "post",
    "/infer",
    "What a model makes of tensors",
    INFER_BODY,
    responses=INFER_ANSWER | failures(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)
async def infer(request: Request, call: ACall) -> Response:
    model = call.able()  # before anything is read
    call.require_room()
    body = await read(request)
    said, most = request.headers.get(LENGTH), request.app.state.settings.max_images
    work = await parsed(_understood, body, said, model.bundle, most)
    if work.question.patience_ms:
        call.hurry(work.question.patience_ms)
    if work.images is None:
        return await call.beyond(
            work.encoded, model, work.wishes, lambda found: _answer(call.metrics, model.bundle, work, found)
        )
    plan = _plan(call.metrics, model.bundle, work)
    return await call.answered_by(model, work.images, plan.outputs, plan.shape)


def plain(metrics: Metrics, most: int, body: bytes, said: str | None, model: Model) -> tuple[np.ndarray, Plan] | None:
    """Of a small body that has pixels in it, and asks for no deadline of its own, these and what is made of them."""
    question = _question(body, said, model.bundle, most)
    if question.patience_ms or [(each.name, each.datatype) for each in question.inputs] != [(IMAGE, IMAGE_TYPE)]:
        return None
    work = work_of(question, model.bundle, most)
    assert isinstance(work.images, np.ndarray)
    return work.images, _plan(metrics, model.bundle, work)


def _plan(metrics: Metrics, bundle: Bundle, work: Work) -> Plan:
    return Plan((), work.wishes, lambda found: _answer(metrics, bundle, work, found.outputs))


def _understood(body: bytes, said: str | None, bundle: Bundle, most: int) -> Work:
    return work_of(_question(body, said, bundle, most), bundle, most)


def _question(body: bytes, said: str | None, bundle: Bundle, most: int) -> Question:
    length = json_length(said, body)
    raw = said is not None and length == 0
    return raw_question(body, bundle) if raw else question_of(body, length, most_values(bundle, most))


def _answer(metrics: Metrics, bundle: Bundle, work: Work, found: Outputs) -> Response:
    for name, array in found.items():
        if work.encoded and not np.isfinite(array).all():
            raise MalformedRequest(f"{name} is not finite: the inputs are too far from what the encoder gives")
    values = {asked.name: output.of(bundle, found) for asked, output in work.outputs}
    _count(metrics, bundle, found, values)
    question = work.question
    head = {"model_name": bundle.name, "model_version": str(bundle.version)}
    head |= {} if question.id is None else {"id": question.id}
    labels = bundle.manifest.classifier.labels if bundle.manifest.classifier else ()
    outputs = [
        (asked, values[asked.name] if asked.classes is None else best(values[asked.name], labels, asked.classes))
        for asked, _ in work.outputs
    ]
    return answer_of({**head, "parameters": {"digest": bundle.digest}}, outputs)


def _count(metrics: Metrics, bundle: Bundle, found: Outputs, values: dict[str, np.ndarray]) -> None:
    if LOGITS in found:
        probabilities = values.get(PROBABILITIES)
        if probabilities is None:
            probabilities = results.probabilities(bundle, found)
        metrics.classified(bundle.name, bundle.version, probabilities.max(axis=1).tolist())
    if DISTANCES in found:
        scores = values.get(SCORE)
        if scores is None:
            scores = results.combined_scores(bundle, found)
        metrics.scored(bundle.name, bundle.version, scores.tolist())


@router.post(
    "/repository/index",
    summary="Every version there is, loaded or not",
    responses=failures(400, 401, 408, 413, 415, 429, 500),
    openapi_extra=INDEX_BODY,
)
async def index(request: Request, repository: Models) -> list[IndexEntry]:
    only = (await _told(request)).get("ready", False)
    if not isinstance(only, bool):
        raise MalformedRequest(f"ready {only!r:.40} is neither true nor false")
    return [
        IndexEntry(name=each.name, version=str(each.version), state=each.state, reason=each.reason)
        for each in repository.index()
        if each.state == "READY" or not only
    ]


_GUARDED = [Depends(guarded)]
_CONTROL = failures(400, 401, 403, 404, 408, 413, 415, 422, 429, 500)


@router.post(
    "/repository/models/{name}/load",
    summary="Load a model, or another version of it, in place of what answers",
    responses=_CONTROL,
    openapi_extra=LOAD_BODY,
    dependencies=_GUARDED,
)
async def load(request: Request, name: str, repository: Models) -> dict[str, str]:
    """A body's parameters may name the version: so one goes back to an earlier one."""
    parameters = parameters_of(await _told(request), "the request")
    version = parameters.pop("version", None)
    if not (version is None or (isinstance(version, str | int) and not isinstance(version, bool))):
        raise MalformedRequest(f"version {version!r:.40} is none")
    if parameters:
        raise MalformedRequest(f"parameters: {', '.join(parameters)[:100]}: a bundle is loaded as it is, or not at all")
    model = await repository.load(name, version)
    return {"name": model.bundle.name, "version": str(model.bundle.version)}


@router.post(
    "/repository/models/{name}/unload",
    summary="Let no version of a model answer any more",
    responses=_CONTROL,
    openapi_extra=LOAD_BODY,
    dependencies=_GUARDED,
)
async def unload(request: Request, name: str, repository: Models) -> dict[str, str]:
    await _told(request)
    await repository.unload(name)
    return {"name": name}


async def _told(request: Request) -> dict[str, Any]:
    """The body's object; clients send nothing, or an empty string, where they have nothing to say."""
    body = await read(request)
    document = json_of(body, _MOST_WORDS) if body.strip() else {}
    if document == "":
        return {}
    if not isinstance(document, dict):
        raise MalformedRequest("a JSON object is expected, or nothing")
    return document
