from pathlib import Path

import numpy as np
import pytest

from app.bundle import load
from app.errors import MalformedRequest
from app.inference.answer import DISTANCES, LOGITS, OutputRequest, answer
from app.inference.results import anomaly_fields, anomaly_scores, classify_fields, in_domain_fields, merge


def test_fields_are_the_bundles_own_verdicts(models: Path) -> None:
    bundle = load(models / "tiny/1")
    images = np.random.default_rng(0).integers(0, 256, (3, *bundle.manifest.input.shape), dtype=np.uint8)
    [outputs] = answer(bundle, [OutputRequest(images, frozenset({LOGITS, DISTANCES}))])
    fields = classify_fields(bundle, outputs, top_k=2)
    for found, direct in zip(fields, bundle.classify(images), strict=True):
        assert found == {
            "label": direct.label,
            "index": direct.index,
            "confidence": direct.confidence,
            "probabilities": dict(direct.ranked[:2]),
        }
    verdicts = anomaly_scores(bundle, outputs, None)
    assert verdicts == bundle.anomaly(images)
    merge(fields, [anomaly_fields(each) | in_domain_fields(each) for each in verdicts])
    for found, verdict in zip(fields, verdicts, strict=True):
        assert found["in_domain"] is not verdict.anomalous
        assert anomaly_fields(verdict).items() <= found.items()


def test_a_rate_that_cannot_be_held_is_the_callers_mistake(models: Path) -> None:
    bundle = load(models / "tiny/1")
    images = np.zeros((1, *bundle.manifest.input.shape), np.uint8)
    [outputs] = answer(bundle, [OutputRequest(images, frozenset({DISTANCES}))])
    with pytest.raises(MalformedRequest, match="false_alarm_rate: 199 held-out normals"):
        anomaly_scores(bundle, outputs, 1e-5)
