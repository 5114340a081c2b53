"""Every setting of the service: GRAFT_<NAME> in the environment, or --<name> on the command line.

A test holds docs/settings.md to this list.
"""

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsInvalid

PREFIX = "GRAFT_"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    models: Path = Field(Path("models"), description="folder of bundles, <name>/<version>/ in it")
    default_model: str | None = Field(
        None, description="model that answers when a request names none; unset, the first by name"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of one graph run; unset, the CPUs that the container may use"
    )
    max_body_mb: int = Field(32, ge=1, le=4096, description="largest request body, in MB; above it 413")
    max_images: int = Field(128, ge=1, le=100_000, description="most images in one request; above it 413")
    max_pixels: int = Field(
        64_000_000,
        ge=1,
        description="most pixels in one image, read from its header before decoding; above it 413 (89 M at the most)",
    )
    root_path: str = Field("", description="path prefix under which a proxy serves this, such as /graft")


def load_settings(**overrides: object) -> Settings:
    """From the environment, `overrides` first; a bad value is named as its user wrote it."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            given = f"--{name.replace('_', '-')}" if name in overrides else f"{PREFIX}{name.upper()}"
            lines.append(f"{given}={problem['input']}: {problem['msg']}")
        raise SettingsInvalid("\n".join(lines)) from None
