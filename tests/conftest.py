"""Fixtures for all: a folder with one tiny bundle, and a client of a real server that serves it."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import save_tiny, serving

from app.settings import Settings

os.environ.setdefault("GRAFT_TUNE", "off")  # hundreds of services start; those that tests tune say so

# Files of few and long tests, the longest first: begun last, they would be waited for by all but one processor.
LONG = ("test_run.py", "test_ranks.py", "test_documents.py", "test_bench.py", "test_fuzz.py", "test_shapes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


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
