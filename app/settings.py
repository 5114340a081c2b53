"""Every setting of the service: GRAFT_<NAME> in the environment, or --<name> on the command line, except for keys.

A test checks that docs/settings.md lists them all.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsInvalid

PREFIX = "GRAFT_"
SECRETS = {  # not flags, because every user of a machine can see the arguments of its processes
    "api_keys": f"{PREFIX}API_KEYS, or {PREFIX}API_KEYS_FILE to a file with one per line",
    "metrics_key": f"{PREFIX}METRICS_KEY",
}
_OF_ONE = {  # limit on all → the limit on one, and the message if the former is lower
    "max_bodies_mb": (
        "max_body_mb",
        "a body may have {:,} MB (MAX_BODY_MB): all bodies together must have room for one",
    ),
    "max_queue": ("max_images", "a request may have {:,} images (MAX_IMAGES): the queue must hold one"),
    "max_request_pixels": ("max_pixels", "an image may have {:,} pixels (MAX_PIXELS): a request must hold one"),
}
ModelControl = Literal["none", "poll", "explicit"]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port on which the Open Inference Protocol is served over gRPC, too, on the same host; 0 picks a "
        "free one; unset, none",
    )
    models: Path = Field(Path("models"), description="folder of bundles: <name>/<version>/")
    default_model: str | None = Field(None, description="model for requests that name none; unset, the first by name")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads of one graph run, in each worker; unset, its share of the container's CPUs",
    )
    tune: Literal["on", "off"] = Field(
        "on",
        description="whether each model, once it is served, tries in how many threads and otherwise its graphs run "
        "fastest here, and keeps that: on or off",
    )
    max_batch: int = Field(
        32, ge=1, le=4096, description="most images that run through a model together, in each worker"
    )
    timeout_ms: int = Field(
        30_000,
        ge=1,
        le=3_600_000,
        description="most milliseconds from a request's last byte to its answer; above it 504; "
        "the header X-Timeout-Ms lowers it for one request",
    )
    workers: int = Field(1, ge=1, le=64, description="processes that share the port; each loads every model")
    model_control: ModelControl = Field(
        "none",
        description="how models change while the service runs: none, poll (follow the folder), or explicit "
        "(by calls under /v2/repository; one worker only)",
    )
    poll_s: float = Field(2, ge=0.1, le=3600, description="seconds between two checks of the folder, with poll")
    drain_s: int = Field(10, ge=0, le=3600, description="most seconds that a stop waits for requests in flight")
    provider: str = Field(
        "cpu",
        description="what runs the graphs: cpu, prefer-gpu, require-gpu, or onnxruntime's own names, comma-separated",
    )
    max_body_mb: int = Field(32, ge=1, le=4096, description="largest request body, in MB; above it 413")
    max_bodies_mb: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="most MB of bodies in memory at once, over all requests of each worker; above it 429",
    )
    body_timeout_s: int = Field(60, ge=1, le=3600, description="most seconds for a body to arrive; above it 408")
    head_timeout_s: float = Field(
        10, ge=0.1, le=3600, description="most seconds for a request's line and headers to arrive; above it 408"
    )
    keep_alive_s: float = Field(
        75,
        ge=0.1,
        le=3600,
        description="seconds after an answer until an idle connection is closed",
    )
    max_connections: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="most connections of each worker; above it 503; above twice as many, closed unanswered",
    )
    max_images: int = Field(128, ge=1, le=100_000, description="most images in one request; above it 413")
    max_queue: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="most images in flight, over all requests of each worker; above it 429",
    )
    max_pixels: int = Field(
        64_000_000,
        ge=1,
        description="most pixels in one image, read from its header before decoding; above it 413 (89 M at most)",
    )
    max_request_pixels: int = Field(
        128_000_000,
        ge=1,
        description="most pixels of all images in one request, read from their headers before decoding; above it 413",
    )
    decode_mb: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="most MB that all images being decoded take together; unset, 55 % of the container's memory; "
        "an image that could never fit is 413",
    )
    api_keys: str | None = Field(
        None, description="keys, comma-separated, of which a request must carry one; unset, every request is accepted"
    )
    api_keys_file: Path | None = Field(None, description="file of further keys, one per line")
    metrics_key: str | None = Field(None, description="separate key for /metrics; unset, the other keys")
    cors_origins: str | None = Field(
        None, description="origins whose pages may call the service, comma-separated, or *; unset, none"
    )
    feedback: Path | None = Field(
        None, description="folder in which feedback is kept for graft-train learn; unset, none is accepted"
    )
    feedback_mb: int = Field(1000, ge=1, le=1_000_000, description="most MB of feedback in the folder; above it 507")
    feedback_pictures: bool = Field(
        False, description="keep the pictures that feedback is about, too; else what the model made of them"
    )
    feedback_recent_mb: int = Field(
        64,
        ge=0,
        le=1_000_000,
        description="MB of the latest images that each worker remembers, for feedback by request id",
    )
    log_format: Literal["text", "json"] = Field("text", description="format of the log on standard error: text or json")
    log_requests: Literal["errors", "all", "none"] = Field(
        "errors", description="requests that get a line in the log: errors (4xx and 5xx), all or none"
    )
    root_path: str = Field("", description="path prefix under which a proxy serves this, such as /graft")

    @property
    def origins(self) -> tuple[str, ...]:
        """`cors_origins`, split."""
        return tuple(filter(None, (origin.strip() for origin in (self.cors_origins or "").split(","))))

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mb * 1_000_000

    def decode_bytes(self, default: int) -> int:
        """Bytes for decoding in each worker. `default` is for all workers: app.inference.decoding.default_memory."""
        return (default if self.decode_mb is None else self.decode_mb * 1_000_000) // self.workers

    @field_validator(*_OF_ONE)
    @classmethod
    def holds_one(cls, limit: int, info: ValidationInfo) -> int:
        """A limit on all may not be below the limit on one of them."""
        name, message = _OF_ONE[str(info.field_name)]
        one = info.data.get(name, 1)
        if limit < one:
            raise ValueError(message.format(one))
        return limit

    @model_validator(mode="after")
    def workers_share_a_port(self) -> "Settings":
        if self.grpc_port == 0 and self.workers > 1:
            raise ValueError(f"{PREFIX}GRPC_PORT=0 picks a port, and {self.workers} workers share one: name it")
        if self.grpc_port and self.grpc_port == self.port:
            raise ValueError(f"{PREFIX}GRPC_PORT={self.port} is {PREFIX}PORT, too: HTTP and gRPC need one each")
        return self

    @field_validator("model_control")
    @classmethod
    def reaches_every_worker(cls, control: ModelControl, info: ValidationInfo) -> ModelControl:
        workers = info.data.get("workers", 1)
        if control == "explicit" and workers > 1:
            raise ValueError(f"a call would reach one of {workers} workers: use poll, or one worker")
        return control


def mistyped(environment: Iterable[str]) -> dict[str, str]:
    """Misspelt settings → the settings that were meant. Other unknown GRAFT_ names are fine: platforms add some."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    unknown = [name for name in environment if name.startswith(PREFIX) and name not in known]
    matches = {name: get_close_matches(name, known, n=1, cutoff=0.85) for name in sorted(unknown)}
    return {name: best[0] for name, best in matches.items() if best}


def load_settings(**overrides: object) -> Settings:
    """Reads the environment; `overrides` win. SettingsInvalid names a bad value as its user wrote it."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            if not problem["loc"]:  # of several settings, which the message names
                lines.append(problem["msg"])
                continue
            name = str(problem["loc"][0])
            written = f"--{name.replace('_', '-')}" if name in overrides else f"{PREFIX}{name.upper()}"
            lines.append(f"{written}={problem['input']}: {problem['msg']}")
        raise SettingsInvalid("\n".join(lines)) from None
