"""The JSON that goes out and, described for OpenAPI, the bodies that come in."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.bundle.bundle import Bundle
from app.bundle.manifest import Metric
from app.bundle.scoring import Classification


class ModelRef(BaseModel):
    """Which bundle answered: embeddings and scores compare only within one digest."""

    name: str
    version: int
    digest: str

    @classmethod
    def of(cls, bundle: Bundle) -> "ModelRef":
        return cls(name=bundle.name, version=bundle.version, digest=bundle.digest)


class ClassifyResult(BaseModel):
    label: str
    index: int
    confidence: float
    probabilities: dict[str, float] = Field(description="likeliest first; as many as `top_k`, or all")


class ClassifyResponse(BaseModel):
    model: ModelRef
    results: list[ClassifyResult] = Field(description="one for each image, in the order they came")

    @classmethod
    def of(cls, bundle: Bundle, found: list[Classification], top_k: int | None) -> "ClassifyResponse":
        results = [
            ClassifyResult(label=c.label, index=c.index, confidence=c.confidence, probabilities=dict(c.ranked[:top_k]))
            for c in found
        ]
        return cls(model=ModelRef.of(bundle), results=results)


class ModelSummary(ModelRef):
    title: str
    default: bool = Field(description="answers when a request names no model")
    operations: list[str]
    labels: list[str] | None
    input: list[int] = Field(description="height, width, channels: what every image is brought to")
    metrics: list[Metric]

    @classmethod
    def summary(cls, bundle: Bundle, default: bool) -> "ModelSummary":
        m = bundle.manifest
        return cls(
            **ModelRef.of(bundle).model_dump(),
            title=m.title,
            default=default,
            operations=list(bundle.operations),
            labels=list(m.classifier.labels) if m.classifier else None,
            input=list(m.input.shape),
            metrics=list(m.metrics),
        )


class ModelDetail(ModelSummary):
    manifest: dict[str, Any] = Field(description="the bundle's manifest.json")


class Refused(BaseModel):
    bundle: str
    reason: str


class ModelList(BaseModel):
    models: list[ModelSummary]
    refused: list[Refused] = Field(description="bundles that were found and failed a check")


class Health(BaseModel):
    status: Literal["ok"]


class Problem(BaseModel):
    """RFC 9457. `index` names the image when one of several is at fault."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "title", "status", "detail", "request_id"]})

    type: str = Field(description="urn:graft:problem:<what happened>")
    title: str
    status: int
    detail: str
    request_id: str
    index: int | None = Field(None, description="absent unless one image of the request is at fault")


IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "one or more files, under any field names",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["image"],
                },
                "encoding": {"image": {"contentType": "image/*"}},
            },
            "image/*": {"schema": {"type": "string", "format": "binary", "description": "one file, as it is"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "string",
                                "contentEncoding": "base64",
                                "description": "one file in base64; a data-URL prefix is allowed",
                            },
                        }
                    },
                    "required": ["images"],
                    "additionalProperties": False,
                }
            },
        },
    }
}
