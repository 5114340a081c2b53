from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import save_tiny

from app.bundle import load
from app.inference.model import Model


@pytest.mark.parametrize("parts", [{}, {"head": False}, {"decoder": False}, {"head": False, "decoder": False}])
def test_every_kind_of_bundle_is_measured_and_a_tiny_one_runs_on_the_loop(
    tmp_path: Path, parts: dict[str, bool]
) -> None:
    model = Model(load(save_tiny(tmp_path, **parts), threads=1), 32, ThreadPoolExecutor(1), lambda *_: None)
    assert 0 < model.seconds < 0.1
    assert 0 < model.most_on_loop <= 32
    assert model.name == "tiny@1"
