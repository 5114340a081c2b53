"""The protocol's routes. Bodies are read as bytes; only requests that load or unload need a JSON content type."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from app.api.call import Call, Plan, Timeout
from app.api.middleware.root_path import PROTOCOL
from app.api.request_body import json_of, parsed, read
from app.api.request_forgery import refuse_cross_origin
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
    SCORE,
    ResolvedRequest,
    most_values,
    raw_infer_request,
    resolve,
    top_classes,
)
from app.api.v2.wire import (
    LENGTH,
    InferRequest,
    Parameters,
    infer_response,
    json_length,
    parameters_of,
    parse_infer_request,
)
from app.api.v2.wire import Outputs as RequestedOutputs
from app.bundle.bundle import Bundle
from app.errors import MalformedRequest
from app.inference import results
from app.inference.answer import DISTANCES, LOGITS, PROBABILITIES, Outputs
from app.inference.model import Model
from app.telemetry.metrics import Metrics

router = APIRouter(prefix=PROTOCOL, tags=["open inference protocol"])

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
_MAX_VALUES = 100  # commas and brackets in the body of a repository request
Handler = TypeVar("Handler", bound=Callable[..., Any])


async def _call(request: Request, name: str, timeout_ms: Timeout = None) -> Call:
    return Call(request, _model_name(request, name), timeout_ms)


async def _model(request: Request, name: str, repository: Models) -> Model:
    return repository.get(_model_name(request, name))


def _model_name(request: Request, name: str) -> str:
    version = request.path_params.get("version")
    return name if version is None else f"{name}@{version}"


ACall = Annotated[Call, Depends(_call)]
AModel = Annotated[Model, Depends(_model)]


def _of_model(
    method: str, path: str, summary: str, openapi_extra: dict[str, Any] | None = None, **options: Any
) -> Callable[[Handler], Handler]:
    """Two routes: of a model, and of one version of it."""

    def add(handler: Handler) -> Handler:
        extra = openapi_extra or {}
        versioned = {**extra, "parameters": [*extra.get("parameters", ()), VERSION_PARAMETER]}
        for prefix, described in (("/models/{name}", extra), ("/models/{name}/versions/{version}", versioned)):
            route = getattr(router, method)(prefix + path, summary=summary, openapi_extra=described, **options)
            route(handler)
        return handler

    return add


@router.get("", summary="The server", responses=failures(401, 500))
@router.get("/", include_in_schema=False)
async def server(request: Request) -> ServerMetadata:
    return ServerMetadata(name="graft", version=request.app.version, extensions=EXTENSIONS)


@router.get("/health/live", summary="The process is alive", responses=failures(500))
async def live(repository: Models) -> ServerHealth:
    return ServerHealth(live=True, ready=repository.ready)


@router.get("/health/ready", summary="Models are loaded, verified and warm", responses=failures(500, 503))
async def ready(repository: Models) -> ServerHealth:
    require_ready(repository)
    return ServerHealth(live=True, ready=True)


@_of_model("get", "", "Input and output tensors of a model", responses=failures(401, 404, 500, 503))
async def metadata(model: AModel, repository: Models) -> ModelMetadata:
    return describe.metadata(model.bundle, describe.versions(repository, model.bundle.name))


@_of_model("get", "/ready", "Whether a model is ready", responses=failures(401, 404, 500, 503))
async def model_ready(model: AModel) -> ModelHealth:
    return ModelHealth(name=model.bundle.name, ready=True)


@_of_model("get", "/config", "A model's configuration, in Triton's form", responses=failures(401, 404, 500, 503))
async def config(model: AModel, request: Request) -> dict[str, Any]:
    return describe.configuration(model.bundle, request.app.state.settings.max_images)


@_of_model("get", "/stats", "A model's statistics, in Triton's form", responses=failures(401, 404, 500, 503))
def stats(model: AModel, request: Request) -> ModelStatistics:
    # Not `async`, so that FastAPI runs it in a thread: it reads the workers' files.
    bundle = model.bundle
    samples = request.app.state.metrics.of(bundle.name, bundle.version)
    return ModelStatistics(model_stats=[describe.statistics(bundle, samples)])


@_of_model(
    "post",
    "/infer",
    "Run a model on tensors",
    INFER_BODY,
    responses=INFER_ANSWER | failures(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)
async def infer(request: Request, call: ACall) -> Response:
    model = call.require_model()  # 404 before the body is read
    call.require_room()
    body = await read(request)
    length_header, most = request.headers.get(LENGTH), request.app.state.settings.max_images
    resolved = await parsed(_parse_and_resolve, body, length_header, model.bundle, most)
    if resolved.request.timeout_ms:
        call.limit_time(resolved.request.timeout_ms)
    if resolved.images is None:
        return await call.run_from_encoded(
            resolved.encoded,
            model,
            resolved.needs,
            lambda outputs: _respond(call.metrics, model.bundle, resolved, outputs),
        )
    plan = _plan(call.metrics, model.bundle, resolved)
    return await call.run_model(model, resolved.images, plan.outputs, plan.shape)


def parse_small_infer(
    metrics: Metrics, most: int, body: bytes, length_header: str | None, model: Model
) -> tuple[list[bytes] | np.ndarray, Plan, int | None] | None:
    """For the fast path: images, plan and timeout of a small body, or None if it has outputs of the encoder."""
    request = _parse(body, length_header, model.bundle, most)
    resolved = resolve(request, model.bundle, most)
    if resolved.images is None:
        return None
    return resolved.images, _plan(metrics, model.bundle, resolved), request.timeout_ms


def _plan(metrics: Metrics, bundle: Bundle, resolved: ResolvedRequest) -> Plan:
    return Plan((), resolved.needs, lambda result: _respond(metrics, bundle, resolved, result.outputs))


def _parse_and_resolve(body: bytes, length_header: str | None, bundle: Bundle, most: int) -> ResolvedRequest:
    return resolve(_parse(body, length_header, bundle, most), bundle, most)


def _parse(body: bytes, length_header: str | None, bundle: Bundle, most: int) -> InferRequest:
    length = json_length(length_header, body)
    if length_header is not None and length == 0:
        return raw_infer_request(body, bundle)
    return parse_infer_request(body, length, most_values(bundle, most))


def _respond(metrics: Metrics, bundle: Bundle, resolved: ResolvedRequest, outputs: Outputs) -> Response:
    request = resolved.request
    head = {"model_name": bundle.name, "model_version": str(bundle.version)}
    head |= {} if request.id is None else {"id": request.id}
    return infer_response(
        {**head, "parameters": {"digest": bundle.digest}}, computed(metrics, bundle, resolved, outputs)
    )


def computed(metrics: Metrics, bundle: Bundle, resolved: ResolvedRequest, outputs: Outputs) -> RequestedOutputs:
    """The requested outputs in order, from those of the graphs; counts confidences and scores."""
    for name, array in outputs.items():
        if resolved.encoded and not np.isfinite(array).all():
            raise MalformedRequest(f"{name} is not finite: the inputs are too far from outputs of the encoder")
    values = {requested.name: output.compute(bundle, outputs) for requested, output in resolved.outputs}
    _count(metrics, bundle, outputs, values)
    labels = bundle.manifest.classifier.labels if bundle.manifest.classifier else ()
    return [
        (each, values[each.name] if each.classes is None else top_classes(values[each.name], labels, each.classes))
        for each, _ in resolved.outputs
    ]


def _count(metrics: Metrics, bundle: Bundle, outputs: Outputs, values: dict[str, np.ndarray]) -> None:
    if LOGITS in outputs:
        probabilities = values.get(PROBABILITIES)
        if probabilities is None:
            probabilities = results.probabilities(bundle, outputs)
        metrics.classified(bundle.name, bundle.version, probabilities.max(axis=1).tolist())
    if DISTANCES in outputs:
        scores = values.get(SCORE)
        if scores is None:
            scores = results.combined_scores(bundle, outputs)
        metrics.scored(bundle.name, bundle.version, scores.tolist())


@router.post(
    "/repository/index",
    summary="All versions, loaded or not",
    responses=failures(400, 401, 408, 413, 415, 429, 500),
    openapi_extra=INDEX_BODY,
)
async def index(request: Request, repository: Models) -> list[IndexEntry]:
    ready_only = (await _read_object(request)).get("ready", False)
    if not isinstance(ready_only, bool):
        raise MalformedRequest(f"ready {ready_only!r:.40} is neither true nor false")
    return describe.index(repository, ready_only)


_GUARDED = [Depends(refuse_cross_origin)]
_CONTROL = failures(400, 401, 403, 404, 408, 413, 415, 422, 429, 500)


@router.post(
    "/repository/models/{name}/load",
    summary="Load a model, or replace its loaded version",
    responses=_CONTROL,
    openapi_extra=LOAD_BODY,
    dependencies=_GUARDED,
)
async def load(request: Request, name: str, repository: Models) -> dict[str, str]:
    """The parameter `version` may name an earlier version to go back to."""
    version = version_to_load(parameters_of(await _read_object(request), "the request"))
    model = await repository.load(name, version)
    return {"name": model.bundle.name, "version": str(model.bundle.version)}


@router.post(
    "/repository/models/{name}/unload",
    summary="Unload all versions of a model",
    responses=_CONTROL,
    openapi_extra=LOAD_BODY,
    dependencies=_GUARDED,
)
async def unload(request: Request, name: str, repository: Models) -> dict[str, str]:
    await _read_object(request)
    await repository.unload(name)
    return {"name": name}


def version_to_load(parameters: Parameters) -> str | int | None:
    """None: the highest in the folder."""
    others = [name for name in parameters if name != "version"]
    version = parameters.get("version")
    if not (version is None or (isinstance(version, str | int) and not isinstance(version, bool))):
        raise MalformedRequest(f"version {version!r:.40}: a string or a whole number is expected")
    if others:
        raise MalformedRequest(f"parameters: {', '.join(others)[:100]}: only version is supported")
    return version


async def _read_object(request: Request) -> dict[str, Any]:
    """The body's JSON object. Some clients send an empty body or an empty string instead of an empty object."""
    body = await read(request)
    document = json_of(body, _MAX_VALUES) if body.strip() else {}
    if document == "":
        return {}
    if not isinstance(document, dict):
        raise MalformedRequest("the body is not a JSON object: send one, or an empty body")
    return document
