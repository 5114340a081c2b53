import numpy as np
import pytest
import torch

from app.bundle.session import Session
from training.networks.autoencoder import build
from training.networks.encoded import Joined, Patches, Places
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


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 300)])
@pytest.mark.parametrize(
    ("backbone", "reads", "features"),
    [
        *(("efficientnet-lite0", "embedding", False), ("efficientnet-lite0", "features", True)),
        *(("resnet18", "embedding", True), ("resnet18", "features", False)),
    ],
)
def test_a_linear_head_on_a_backbone_is_explained_by_its_maps(
    backbone: str, reads: str, features: bool, height: int, width: int
) -> None:
    """A map of 2 by 10 places is given by 2 by 7."""
    torch.manual_seed(0)
    spec = Input(height=height, width=width, channels=3).spec()
    net = build(Network(backbone=backbone, weights=None), spec.shape)  # type: ignore[arg-type]
    head = torch.nn.Linear(net.latent if reads == "embedding" else net.pool.size, 3)
    made = export(net, head, spec, reads=reads, features=features, decodes=False)
    assert made.graphs.explain is not None
    assert made.graphs.explain.outputs[0].shape == (-1, 3, 2, min(7, -(-width // 32)))
    images = np.full((4, *spec.shape), 100, np.uint8)
    images[1, :16, :16], images[2, -16:, -16:] = 255, 0
    encoder, explain, classify = (
        Session(made.files[graph.file], graph, graph.file, 1)
        for graph in (made.graphs.encoder, made.graphs.explain, made.graphs.head)
        if graph is not None
    )
    encoded = encoder.run(images)
    evidence = explain.run(encoded["map"])["evidence"]
    logits = classify.run(encoded[reads])["logits"]
    np.testing.assert_allclose(evidence.sum(axis=(2, 3)) + head.bias.detach().numpy(), logits, atol=1e-4)
    if width == height:  # of two by two places each sees the whole picture
        return
    first, last = (np.abs(evidence[index] - evidence[0]).sum(axis=0) for index in (1, 2))
    assert first[:, : first.shape[1] // 2].sum() > first[:, -(first.shape[1] // 2) :].sum()
    assert last[:, : last.shape[1] // 2].sum() < last[:, -(last.shape[1] // 2) :].sum()


def test_places_of_a_map_keep_the_average_of_each_channel() -> None:
    """Also where rows and columns do not divide; and what lies at the left stays there."""
    torch.manual_seed(0)
    maps = [torch.rand(2, 3, 11, 7), torch.rand(2, 4, 6, 4), torch.rand(2, 5, 3, 2)]
    maps[0][1, 0] = 0
    maps[0][1, 0, :, :2] = 7
    joined = Places([tuple(each.shape[1:]) for each in maps])(maps)
    assert joined.shape == (2, 12, 3, 2)
    expected = torch.cat([each.mean(dim=(2, 3)) for each in maps], dim=1)
    torch.testing.assert_close(joined.mean(dim=(2, 3)), expected)
    torch.testing.assert_close(joined[:, -5:], maps[-1])
    torch.testing.assert_close(joined[1, 0], torch.tensor([4.0, 0.0]).expand(3, 2))


@pytest.mark.parametrize(
    ("network", "strides", "levels"),
    [
        (Network(backbone="efficientnet-lite0", weights=None), (), ((24 + 40, 8, 12), (112, 4, 6))),
        (Network(backbone="efficientnet-lite0", weights=None), (4, 32), ((24, 16, 24), (320, 2, 3))),
        (Network(backbone="resnet18", weights=None), (16,), ((256, 4, 6),)),
        (Network(width=4, latent=8), (), ((8 + 16, 8, 12), (32, 4, 6))),
    ],
)
def test_stage_maps_are_joined_for_patches(
    network: Network, strides: tuple[int, ...], levels: tuple[tuple[int, int, int], ...]
) -> None:
    torch.manual_seed(0)
    spec = Input(height=64, width=96, channels=3).spec()
    made = export(build(network, spec.shape), None, spec, decodes=False, patches=strides)
    assert made.graphs.encoder.outputs[-1].name == "patch_features"
    assert made.levels == levels
    assert made.graphs.encoder.outputs[-1].shape == (-1, sum(channels for channels, *_ in levels), *levels[0][1:])


def test_joined_maps_stay_in_place() -> None:
    """A finer map is averaged over the places, and the places of a coarser one are repeated."""
    finer, middle, coarser = torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)
    finer[0, 0, 2:4, 4:6], middle[0, 0, 1, 2], coarser[0, 0, :, 2] = 9, 9, 9
    maps = [finer, middle, coarser]
    joined = Patches([tuple(each.shape[1:]) for each in maps], Joined((0, 1, 2), on=1))(maps)[0]
    assert joined.shape == (3, 4, 6)
    torch.testing.assert_close(joined[1], middle[0, 0])
    torch.testing.assert_close(joined[0], middle[0, 0])
    torch.testing.assert_close(joined[2], coarser[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1))
    constant = [torch.full_like(each, 3.0) for each in maps]
    torch.testing.assert_close(
        Patches([tuple(each.shape[1:]) for each in maps], Joined((0, 1, 2), 1))(constant)[0], 3 * torch.ones(3, 4, 6)
    )


def test_features_of_finer_cells_or_with_maxima_are_no_averages_of_a_map() -> None:
    spec = Input(height=64, width=64, channels=3).spec()
    for settings, places in (({"grid": 2}, 4), ({"maxima": True}, None)):
        net = build(Network.model_validate({"backbone": "resnet18", "weights": None, **settings}), spec.shape)
        made = export(net, torch.nn.Linear(net.pool.size, 3), spec, reads="features", decodes=False)
        explained = made.graphs.explain
        assert (explained and explained.input.name) == (places and "features")


def test_a_hidden_layer_on_a_backbone_cannot_be_explained() -> None:
    spec = Input(height=32, width=32, channels=3).spec()
    net = build(Network(backbone="resnet18", weights=None), spec.shape)
    head = torch.nn.Sequential(torch.nn.Linear(net.latent, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    assert export(net, head, spec, decodes=False).graphs.explain is None
