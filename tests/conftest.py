"""Fixtures for all: a folder with one tiny bundle, and a client of a real server that serves it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import save_tiny, serving

from app.settings import Settings


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: a test that changes a bundle makes its own."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def client(models: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=models, max_images=8, max_body_mb=1, max_pixels=1_000_000)) as client:
        yield client
