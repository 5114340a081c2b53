"""The JSON of responses and, for OpenAPI, the bodies of requests."""

from typing import Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.api import json_schema
from app.bundle.bundle import Bundle
from app.bundle.latent_map import LatentMap
from app.bundle.manifest import Metric, Weights
from app.inference.model import Model
from app.inference.tuning import State, Trial, Tuning

Result = TypeVar("Result", bound=BaseModel)


class ModelRef(BaseModel):
    """The bundle that answered: embeddings and scores compare only within one digest."""

    name: str
    version: int
    digest: str

    @classmethod
    def of(cls, bundle: Bundle) -> "ModelRef":
        return cls(name=bundle.name, version=bundle.version, digest=bundle.digest)


class Example(BaseModel):
    """An image of the bundle's index."""

    label: str | None = Field(None, description="absent where it has none")
    file: str | None = Field(None, description="its name in the folder that was indexed; absent if it is no file")
    distance: float = Field(description="between the embeddings, along the index's directions; within one digest")
    thumbnail: str | None = Field(None, description="WebP in base64, with `thumbnails=true` where the index has them")


EVIDENCE = Field(None, description="the most similar image of the bundle's index, with `evidence=true`")


class ClassifyResult(BaseModel):
    label: str
    index: int
    confidence: float
    probabilities: dict[str, float] = Field(description="likeliest first; the first `top_k`, or all")
    set: list[str] | None = Field(
        None, description="labels that hold the truth at the rate `coverage`, likeliest first; there may be none"
    )
    in_domain: bool | None = Field(None, description="whether the anomaly score finds the image normal")
    explanation: str | None = Field(
        None, description="PNG in base64: white speaks for the label, black against it, 128 is indifference"
    )
    evidence: Example | None = EVIDENCE


class PresentLabel(BaseModel):
    label: str
    index: int
    probability: float = Field(description="at least the label's threshold, classifier.thresholds in the manifest")
    explanation: str | None = Field(None, description="PNG in base64, as where an image has one label")


class IndependentResult(BaseModel):
    """From a model whose labels are independent: an image may have several of them, or none."""

    labels: list[PresentLabel] = Field(description="those that the image has, likeliest first")
    confidence: float = Field(description="of the label that is decided least surely")
    probabilities: dict[str, float] = Field(description="each in 0…1, likeliest first; the first `top_k`, or all")
    in_domain: bool | None = Field(None, description="whether the anomaly score finds the image normal")
    evidence: Example | None = EVIDENCE


class EncodeResult(BaseModel):
    embedding: list[float] = Field(description="compares only within one digest")
    evidence: Example | None = EVIDENCE


class ReconstructResult(BaseModel):
    image: str = Field(description="PNG in base64")
    error: float = Field(description="mean squared error, in units of the full scale")
    evidence: Example | None = EVIDENCE


class SimilarResult(BaseModel):
    similar: list[Example] = Field(description="the nearest first")


class Region(BaseModel):
    box: list[float] = Field(description="left, top, right, bottom in the upright picture's own pixels")
    area: float = Field(description="in square pixels")
    score: float = Field(description="the map's largest value in it")
    p_value: float = Field(description="share of sound images whose maps reach as high anywhere")


class AnomalyResult(BaseModel):
    score: float = Field(description="the higher, the more anomalous")
    threshold: float
    anomalous: bool = Field(description="p_value is at most the false-alarm rate")
    p_value: float = Field(description="share of held-out normal images that score as high")
    reconstruction_error: float | None = None
    latent_distance: float | None = None
    distances: dict[str, float] = Field(description="what the score sums, before each is scaled")
    heatmap: str | None = Field(None, description="PNG in base64: white where the image is least like normal ones")
    regions: list[Region] | None = Field(None, description="the highest first; none if no place is above the threshold")
    evidence: Example | None = EVIDENCE


class PredictResult(BaseModel):
    """The results of all operations that the model supports; the others are absent."""

    label: str | None = None
    index: int | None = None
    labels: list[PresentLabel] | None = Field(None, description="in the place of label and index, where independent")
    confidence: float | None = None
    probabilities: dict[str, float] | None = None
    set: list[str] | None = Field(None, description="as in classify, with `coverage`")
    in_domain: bool | None = None
    explanation: str | None = None
    embedding: list[float]
    image: str | None = Field(None, description="the reconstruction, PNG in base64")
    error: float | None = None
    score: float | None = None
    threshold: float | None = None
    anomalous: bool | None = None
    p_value: float | None = None
    reconstruction_error: float | None = None
    latent_distance: float | None = None
    distances: dict[str, float] | None = None
    heatmap: str | None = None
    regions: list[Region] | None = None
    evidence: Example | None = EVIDENCE


class DecodeResult(BaseModel):
    image: str = Field(description="PNG in base64")


class GenerateResult(DecodeResult):
    embedding: list[float] = Field(description="the embedding that was drawn")


class Problem(BaseModel):
    """RFC 9457. `index` is the position of the faulty image."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "title", "status", "detail", "request_id"]})

    type: str = Field(description="urn:graft:problem:<what happened>")
    title: str
    status: int
    detail: str
    request_id: str
    index: int | None = Field(
        None, description="absent unless one of several images is faulty, or it stands among results"
    )


class Response(BaseModel, Generic[Result]):
    model: ModelRef
    results: list[Result] = Field(description="one for each image, in the order of the request")


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str = Field(description="the last part of the problem's type")


# A problem with what clients of OpenAI's API read. Without a reference, which a route's description would not resolve.
OPENAI_PROBLEM = Problem.model_json_schema()
OPENAI_PROBLEM["properties"]["error"] = OpenAIError.model_json_schema()
OPENAI_PROBLEM["required"] = [*OPENAI_PROBLEM["required"], "error"]


class EmbeddingOfImage(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or float32 in base64, little-endian")


class Usage(BaseModel):
    """Images have no tokens."""

    prompt_tokens: Literal[0]
    total_tokens: Literal[0]


class EmbeddingList(BaseModel):
    """As OpenAI's API has it, with the digest of the bundle besides."""

    object: Literal["list"]
    data: list[EmbeddingOfImage] = Field(description="one for each image, in the order of the request")
    model: str = Field(description="name@version of the bundle that answered")
    digest: str = Field(description="embeddings compare only within one digest")
    usage: Usage


class PartialResponse(Response[Result | Problem], Generic[Result]):
    """With `partial=true` the problem of a bad image stands in the place of its result."""


class ClassifyResponse(PartialResponse[ClassifyResult | IndependentResult]):
    pass


class EncodeResponse(PartialResponse[EncodeResult]):
    pass


class ReconstructResponse(PartialResponse[ReconstructResult]):
    pass


class AnomalyResponse(PartialResponse[AnomalyResult]):
    pass


class PredictResponse(PartialResponse[PredictResult]):
    pass


class SimilarResponse(PartialResponse[SimilarResult]):
    pass


class FeedbackResult(BaseModel):
    label: str = Field(description="as it was stored")
    predicted: str = Field(description="what the model says of the image")


class FeedbackResponse(Response[FeedbackResult]):
    """All of it is on the disk."""


class DecodeResponse(Response[DecodeResult]):
    pass


class GenerateResponse(Response[GenerateResult]):
    seed: int = Field(description="gives the same images again")


class ModelSummary(ModelRef):
    title: str
    default: bool = Field(description="answers when a request names no model")
    operations: list[str]
    labels: list[str] | None
    input: list[int] = Field(
        description="height, width, channels: every image is resized to this, or cut into tiles of it"
    )
    provider: str = Field(description="the onnxruntime execution provider that runs its graphs")
    metrics: list[Metric]
    weights: Weights | None = Field(description="what its network began with, if others published that")
    milliseconds: float = Field(description="to process one image, measured at start")
    most_on_loop: int = Field(description="largest batch that runs on the event loop; 0: every batch runs in a thread")

    @classmethod
    def summary(cls, model: Model, default: bool) -> "ModelSummary":
        bundle, m = model.bundle, model.bundle.manifest
        return cls(
            **ModelRef.of(bundle).model_dump(),
            title=m.title,
            default=default,
            operations=list(bundle.operations),
            labels=list(m.classifier.labels) if m.classifier else None,
            input=list(m.input.shape),
            provider=bundle.encoder.provider,
            metrics=list(m.metrics),
            weights=m.provenance.weights,
            milliseconds=round(1000 * model.seconds, 3),
            most_on_loop=model.most_on_loop,
        )


class TrialResult(BaseModel):
    graph: str
    provider: str
    threads: int
    level: str = Field(description="of onnxruntime's optimisation of the graph")
    one_ms: float | None = Field(None, description="a batch of one image")
    several_ms: float | None = Field(None, description="a batch of `images`")
    images: int
    problem: str | None = Field(None, description="why the graph cannot run so")
    chosen: bool

    @classmethod
    def of(cls, trial: Trial) -> "TrialResult":
        def ms(seconds: float | None) -> float | None:
            return None if seconds is None else round(1000 * seconds, 4)

        return cls(
            graph=trial.graph,
            provider=trial.execution.providers[0],
            threads=trial.execution.threads,
            level=trial.execution.level,
            one_ms=ms(trial.one_s),
            several_ms=ms(trial.several_s),
            images=trial.images,
            problem=trial.problem,
            chosen=trial.chosen,
        )


class TuningResult(BaseModel):
    """How each graph was tried to run, and which way is the fastest here."""

    state: State
    problem: str | None = None
    trials: list[TrialResult]

    @classmethod
    def of(cls, tuning: Tuning) -> "TuningResult":
        trials = [TrialResult.of(trial) for trial in tuning.trials]
        return cls(state=tuning.state, problem=tuning.problem, trials=trials)


class ModelDetail(ModelSummary):
    tuning: TuningResult
    parts: list[str] = Field(description="the optional parts it has: card, report, map, drift")
    manifest: dict[str, Any] = Field(description="the bundle's manifest.json")


def _rounded(array: np.ndarray) -> Any:
    """Nested lists of numbers with five digits, more than a plot shows."""
    return np.vectorize(lambda value: float(f"{value:.5g}"))(array).tolist()


class MapResponse(BaseModel):
    """A plane through the space of embeddings; an embedding's point is (embedding - mean) · directions."""

    model: ModelRef
    mean: list[float]
    directions: list[list[float]] = Field(description="D × 2")
    points: list[list[float]] = Field(description="the points of held-out images")
    labels: list[int] | None = Field(None, description="the index of each point's label")

    @classmethod
    def of(cls, bundle: Bundle, latent_map: LatentMap) -> "MapResponse":
        return cls(
            model=ModelRef.of(bundle),
            mean=_rounded(latent_map.mean),
            directions=_rounded(latent_map.directions),
            points=_rounded(latent_map.points),
            labels=None if latent_map.labels is None else latent_map.labels.tolist(),
        )


class DriftResponse(BaseModel):
    """Fields that are not known yet are absent."""

    model: ModelRef
    images: int = Field(description="latest images that were compared")
    window: int = Field(description="images that a comparison needs")
    discrepancy: float | None = Field(description="squared maximum mean discrepancy from held-out embeddings")
    p_value: float | None = Field(description="probability of such a discrepancy without drift")
    drifted: bool | None = Field(description="p_value < 0.01")
    confidence_stability: float | None = Field(description="population stability index; above 0.25 is a large change")
    anomaly_score_stability: float | None = Field(description="population stability index of the anomaly scores")
    watched: int | None = Field(
        None, description="images that the martingale has seen since this worker loaded the model"
    )
    martingale: float | None = Field(
        None, description="what a gambler has who began with 1 and bets that images have left the held-out ones"
    )
    martingale_alarm_at: float | None = Field(
        None, description="capital that raises the alarm: without a change it is ever reached in one of 100 services"
    )
    martingale_over_time: list[tuple[int, float]] | None = Field(None, description="(images, martingale)")
    alarm: bool | None = Field(
        None, description="raised, in this worker or another; stays until the model is loaded again"
    )
    alarm_after: int | None = Field(None, description="images of this worker after which it was raised")
    estimated_accuracy: float | None = Field(
        None, description="on the images since then, from their confidences; absent once images have drifted"
    )
    estimated_accuracy_interval: tuple[float, float] | None = Field(None, description="of 95 %")


class Refused(BaseModel):
    bundle: str
    reason: str


class ModelList(BaseModel):
    models: list[ModelSummary]
    refused: list[Refused] = Field(description="bundles in the folder that failed a check")


class Health(BaseModel):
    status: Literal["ok"]


_IMAGES = json_schema.array(
    json_schema.STRING
    | {"contentEncoding": "base64", "description": "one file in base64; a data-URL prefix is allowed"},
    minItems=1,
)
IMAGE_BODY = json_schema.body(
    {
        "multipart/form-data": json_schema.fields(
            {"image": json_schema.array(json_schema.binary(), minItems=1)},
            ["image"],
            description="one or more files, under any field names",
        ),
        "image/*": json_schema.binary("one file, as it is"),
        "application/json": json_schema.fields({"images": _IMAGES}, ["images"], additionalProperties=False),
    }
)
IMAGE_BODY["requestBody"]["content"]["multipart/form-data"]["encoding"] = {"image": {"contentType": "image/*"}}


def optional_image_body() -> dict[str, Any]:
    return {"requestBody": {**IMAGE_BODY["requestBody"], "required": False}}


_EMBEDDINGS = json_schema.array(json_schema.array({"type": "number"}, minItems=1), minItems=1)
EMBEDDINGS_BODY = json_schema.body(
    {
        "application/json": json_schema.fields({"embeddings": _EMBEDDINGS}, ["embeddings"], additionalProperties=False),
        "application/x-npy": json_schema.binary("numpy's .npy of N × D float32"),
    }
)


def binary(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the media types it can send besides JSON, by the Accept header."""
    return {200: {"content": json_schema.content(dict.fromkeys(media_types, json_schema.binary(description)))}}
