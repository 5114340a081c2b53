import numpy as np
import pytest
import torch

from app.bundle.session import Session
from training.networks import build
from training.publish.onnx import Exported, export
from training.recipe import Input, Network

NETWORKS = {"default": Network(width=4, latent=8), "finer": Network(width=4, latent=8, grid=7, maxima=True)}


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request: pytest.FixtureRequest) -> tuple[Exported, torch.nn.Linear]:
    """Colour, and not square: the last map has fewer columns than the grid."""
    torch.manual_seed(0)
    spec = Input(height=64, width=32, channels=3).spec()
    net = build(NETWORKS[request.param], spec.shape)
    head = torch.nn.Linear(net.pool.size, 3)
    return export(net, head, spec, reads="features"), head


def run(exported: Exported, images: np.ndarray) -> dict[str, np.ndarray]:
    graphs = exported.graphs
    encoder, *others = (
        Session(exported.files[graph.file], graph, graph.file, 1)
        for graph in (graphs.encoder, graphs.head, graphs.explain)
        if graph is not None
    )
    found = encoder.run(images)
    for other in others:
        found |= other.run(found["features"])
    return found


def test_the_places_add_up_to_the_logits(exported: tuple[Exported, torch.nn.Linear]) -> None:
    made, head = exported
    assert made.graphs.explain is not None
    assert made.graphs.explain.outputs[0].shape == (-1, 3, 4, 4)
    assert made.feature_maps[-1] == (32, 4, 2)
    found = run(made, np.random.default_rng(0).integers(0, 256, (5, *made.spec.shape), dtype=np.uint8))
    with_bias = found["evidence"].sum(axis=(2, 3)) + head.bias.detach().numpy()
    np.testing.assert_allclose(with_bias, found["logits"], atol=1e-4)


def test_a_place_is_where_it_is(exported: tuple[Exported, torch.nn.Linear]) -> None:
    """What changes in the picture's upper left corner changes the evidence there most."""
    images = np.full((2, *exported[0].spec.shape), 100, np.uint8)
    images[1, :12, :6] = 255
    before, after = run(exported[0], images)["evidence"]
    moved = np.abs(after - before).sum(axis=0)
    assert moved.argmax() == 0
    assert moved[0, 0] > 5 * moved[2:, 2:].max()


def test_a_head_on_the_code_or_on_maps_without_places_cannot_be_explained() -> None:
    spec = Input().spec()
    for network, reads in ((Network(kind="conv-seed"), "embedding"), (Network(kind="dense", hidden=16), "features")):
        net = build(network, spec.shape)
        size = net.latent if reads == "embedding" else net.pool.size
        assert export(net, torch.nn.Linear(size, 3), spec, reads=reads).graphs.explain is None


def test_features_are_given_where_they_are_asked_for() -> None:
    spec = Input().spec()
    net = build(Network(kind="dense", hidden=16), spec.shape)
    without, requested = export(net, None, spec), export(net, None, spec, features=True)
    assert (without.feature_maps, len(without.graphs.encoder.outputs)) == ((), 1)
    assert requested.feature_maps == ((16,),)
    assert requested.graphs.encoder.outputs[1].shape == (-1, 16)
