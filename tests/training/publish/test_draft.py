"""The stages between weights and a published bundle, on a network that has learnt nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app.bundle import load
from training.data.material import Material, gather
from training.learning.stages import Learnt
from training.networks.autoencoder import build
from training.publish.deliver import deliver
from training.publish.draft import Draft, Measured, export, fit_score, measure
from training.recipe import Recipe
from training.recipe import load as load_recipe

Stages = tuple[Material, Draft, Draft, Measured]


@pytest.fixture(scope="module")
def stages(recipe: Path) -> Stages:
    torch.manual_seed(0)
    chosen: Recipe = load_recipe(str(recipe), ["transfer.reads=features"])
    material = gather(chosen)
    net = build(chosen.network, chosen.input.spec().shape)
    for part in (net.encoder, net.decoder, net.pool):
        part.eval()
    learnt = Learnt(net, torch.nn.Linear(net.pool.size, len(material.target.classes)))
    exported = export(chosen, material, learnt)
    scored = fit_score(chosen, material, exported)
    return material, exported, scored, measure(material, scored)


def test_the_graphs_are_loaded_once(stages: Stages) -> None:
    _, exported, scored, measured = stages
    bundles = [exported.bundle, scored.bundle, measured.draft.bundle]
    for part in ("encoder", "decoder", "head", "explainer"):
        assert len({id(getattr(bundle, part)) for bundle in bundles}) == 1, part


def test_a_stage_adds_to_what_the_last_one_gave_and_leaves_that_alone(stages: Stages) -> None:
    _, exported, scored, measured = stages
    assert (exported.bundle.scorer, exported.fields["anomaly"], exported.arrays) == (None, None, {})
    assert scored.bundle.scorer is not None
    assert scored.fields["anomaly"] == scored.bundle.manifest.anomaly is not None
    assert (scored.fields["metrics"], scored.bundle.map) == ((), None)
    assert measured.draft.fields["metrics"] == measured.draft.bundle.manifest.metrics
    assert {"accuracy", "accuracy_in_torch"} <= {metric.name for metric in measured.draft.fields["metrics"]}
    assert measured.draft.bundle.map is not None


def test_what_is_published_is_what_was_measured(stages: Stages, tmp_path: Path) -> None:
    material, _, _, measured = stages
    draft = measured.draft
    bundle = load(deliver(tmp_path, material, draft, "<p>a page</p>", minutes=1.5))
    assert bundle.parts == ["card", "report", "map"]
    assert bundle.documents["report.html"] == b"<p>a page</p>"
    assert b"in 1.5 minutes" in bundle.documents["card.md"]
    assert (bundle.manifest.metrics, bundle.manifest.anomaly) == (draft.fields["metrics"], draft.fields["anomaly"])
    images = material.test.images[:20]
    assert [score.score for score in bundle.anomaly(images)] == [score.score for score in draft.bundle.anomaly(images)]
    for name, values in bundle.run_all(images).items():
        assert np.array_equal(values, draft.bundle.run_all(images)[name]), name
