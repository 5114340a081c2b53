from pathlib import Path

import numpy as np
import pytest
from support import save_tiny

from app.bundle import load
from app.bundle.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP
from app.inference.answer import DISTANCES, EMBEDDING, ERRORS, LOGITS, RECONSTRUCTION, OutputRequest, Outputs, answer

RNG = np.random.default_rng(0)
REQUESTS = ({LOGITS}, {EMBEDDING}, {DISTANCES}, {RECONSTRUCTION, LOGITS}, {LOGITS, ERRORS, DISTANCES}, set())


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    return load(models / "tiny/1")


def request(bundle: Bundle, count: int, outputs: set[str]) -> OutputRequest:
    return OutputRequest(
        RNG.integers(0, 256, (count, *bundle.manifest.input.shape), dtype=np.uint8), frozenset(outputs)
    )


def assert_alike(found: Outputs, alone: Outputs) -> None:
    assert set(found) == set(alone)
    for name, values in alone.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_mixed_batch_gives_each_request_what_it_gets_alone(bundle: Bundle) -> None:
    requests = [request(bundle, count, outputs) for count, outputs in zip((1, 2, 3, 1, 4, 1), REQUESTS, strict=True)]
    for together, each in zip(answer(bundle, requests), requests, strict=True):
        assert_alike(together, answer(bundle, [each])[0])
        assert each.outputs <= set(together)


def test_what_nobody_requests_is_not_computed(bundle: Bundle) -> None:
    [found] = answer(bundle, [request(bundle, 2, {EMBEDDING})])
    assert set(found) == {EMBEDDING}


def test_patches_are_measured_where_a_score_or_their_map_is_asked_for(tmp_path: Path) -> None:
    bundle = load(save_tiny(tmp_path, patches=True))
    asked = ({DISTANCES}, {EMBEDDING}, {ANOMALY_MAP})
    requests = [request(bundle, count, outputs) for count, outputs in zip((2, 3, 1), asked, strict=True)]
    scored, encoded, mapped = answer(bundle, requests)
    assert set(encoded) == {EMBEDDING}
    assert bundle.scorer is not None
    assert bundle.scorer.score_distances(scored[DISTANCES]) == bundle.anomaly(requests[0].images)
    levels = requests[2].images[..., 0] / np.float32(255)
    np.testing.assert_allclose(mapped[ANOMALY_MAP], np.minimum(levels, np.abs(levels - 0.25)), atol=1e-6)
    assert set(answer(bundle, [requests[1]])[0]) == {EMBEDDING}


def test_it_is_what_the_bundle_itself_gives(bundle: Bundle) -> None:
    requested = request(bundle, 5, {LOGITS, DISTANCES, ERRORS})
    [found] = answer(bundle, [requested])
    encoded = bundle.encode(requested.images)
    assert np.array_equal(found[LOGITS], bundle.logits(encoded))
    assert np.array_equal(found[RECONSTRUCTION], bundle.reconstruct(encoded))
    assert bundle.scorer is not None
    assert bundle.scorer.score_distances(found[DISTANCES]) == bundle.anomaly(requested.images)
