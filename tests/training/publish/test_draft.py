"""The stages between weights and a published bundle, on a network that has learnt nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.bundle import load
from training.data.material import Material, gather
from training.errors import TrainingError
from training.learning.stages import Learnt
from training.networks.autoencoder import build
from training.publish.deliver import deliver
from training.publish.draft import Draft, Measured, export, fit_score, in_integers, measure
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


@pytest.fixture(scope="module")
def ribbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound pictures of one ribbed surface, in two folders, and their recipe."""
    folder, rng = tmp_path_factory.mktemp("ribbed"), np.random.default_rng(0)
    ribs = 120 + 40 * np.sin(np.arange(32) * 0.8)
    for part, count in (("train", 40), ("test", 30)):
        for kind in ("left", "right"):
            (folder / part / kind).mkdir(parents=True)
            for number in range(count):
                pixels = np.roll(ribs, rng.integers(0, 8)) + rng.normal(scale=6, size=(32, 32))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / part / kind / f"{number}.png")
    path = folder.parent / "ribbed.toml"
    path.write_text(f"""
name = "ribbed"
title = "ribs"
source = "{folder}"
target = "{folder}"
false_alarm_rate = 0.1
[input]
height = 32
width = 32
[network]
width = 8
[transfer]
mode = "random-frozen"
[decoder]
epochs = 0
[anomaly]
distances = "patches"
patches = 200
""")
    return path


def of_patches(recipe: Path, *changes: str) -> tuple[Material, Measured]:
    """A network that has learnt nothing: a memory of patches needs no more here."""
    chosen = load_recipe(str(recipe), list(changes))
    torch.manual_seed(0)
    material = gather(chosen)
    net = build(chosen.network, chosen.input.spec().shape)
    for part in (net.encoder, net.decoder, net.pool):
        part.eval()
    learnt = Learnt(net, torch.nn.Linear(net.pool.size, len(material.target.classes)))
    return material, measure(material, fit_score(chosen, material, export(chosen, material, learnt)))


@pytest.mark.parametrize("folds", [0, 4])
def test_a_memory_of_patches_sees_a_defect_where_it_is(ribbed: Path, tmp_path: Path, folds: int) -> None:
    material, measured = of_patches(ribbed, f"anomaly.folds={folds}")
    bundle = load(deliver(tmp_path, material, measured.draft, "<p>a page</p>", minutes=1.5))
    anomaly = bundle.manifest.anomaly
    assert anomaly is not None
    assert [distance.name for distance in anomaly.distances] == ["patches"]
    assert anomaly.calibrated_on == (80 if folds else 16)
    sound = material.test.images[:]
    assert np.mean([score.anomalous for score in bundle.anomaly(sound)]) < 0.3
    broken = sound.copy()
    broken[:, 20:25, 4:9] = 250
    assert np.mean([score.anomalous for score in bundle.anomaly(broken)]) > 0.95
    maps = bundle.measure_patches(bundle.encode(broken, patches=True))["anomaly_map"]
    assert maps.shape == (60, 16, 16)  # of two joined, those of the finer
    rows, columns = np.unravel_index(maps.reshape(60, -1).argmax(axis=1), (16, 16))
    assert np.mean((rows >= 9) & (rows <= 13) & (columns >= 1) & (columns <= 5)) > 0.9


def test_patches_of_an_encoder_in_integers_are_its_own(ribbed: Path, tmp_path: Path) -> None:
    """Their tolerance is that of the maps: a processor may round these otherwise."""
    chosen, settings = (
        of_patches(ribbed)[0],
        ["export.int8=true", "export.least_cosine=-1", "export.most_auroc_lost=0.5"],
    )
    recipe = load_recipe(str(ribbed), settings)
    torch.manual_seed(0)
    net = build(recipe.network, recipe.input.spec().shape)
    learnt = Learnt(net, None)
    for part in (net.encoder, net.decoder, net.pool):
        part.eval()
    exported = export(recipe, chosen, learnt)
    draft = in_integers(recipe, chosen, exported, fit_score(recipe, chosen, exported))
    assert draft.bundle.encoder.digest != exported.bundle.encoder.digest
    costs = {note.name: note for note in draft.notes}
    assert 0.5 < costs["int8_patch_cosine"].value < 1, "places are compared, not averages over them alone"
    assert draft.bundle.scorer is not None
    assert costs["int8_auroc_lost"].images == len(draft.bundle.scorer.calibration)
    bundle = load(deliver(tmp_path, chosen, measure(chosen, draft).draft, "<p>a page</p>", minutes=1.5))
    assert bundle.manifest.golden.outputs["anomaly_map"] >= 0.01
    broken = chosen.test.images[:20].copy()
    broken[:, 20:25, 4:9] = 250
    assert np.mean([score.anomalous for score in bundle.anomaly(broken)]) > 0.5


def test_stage_maps_that_the_encoder_lacks_are_named(ribbed: Path) -> None:
    with pytest.raises(TrainingError, match=r"anomaly.strides=\[2, 16\]: the encoder has maps of strides 2, 4, 8"):
        of_patches(ribbed, "anomaly.strides=[2, 16]")


def test_other_distances_may_stand_beside_patches(ribbed: Path) -> None:
    _, measured = of_patches(ribbed, 'anomaly.distances=["embedding.neighbours","patches"]', "anomaly.folds=3")
    anomaly, scores = measured.draft.bundle.manifest.anomaly, measured.outputs.scores
    assert anomaly is not None
    assert scores is not None
    assert [each.name for each in anomaly.distances] == ["embedding.neighbours", "patches"]
    assert np.mean(scores > anomaly.threshold) < 0.3


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
