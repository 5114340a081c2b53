import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

import training
from training.errors import TrainingError
from training.networks import head
from training.networks.autoencoder import build
from training.networks.encoded import Pool
from training.recipe import Network

GREY, COLOUR = (28, 28, 1), (64, 48, 3)
NETWORKS = [
    (Network(kind="conv-seed"), GREY),
    (Network(kind="conv-seed"), (28, 28, 3)),
    (Network(kind="dense"), GREY),
    (Network(kind="dense", variational=True), COLOUR),
    (Network(kind="dense", activation="sigmoid"), GREY),
    (Network(width=8, activation="relu"), GREY),
    (Network(), GREY),
    (Network(width=8, variational=True), COLOUR),
    (Network(width=8), (224, 224, 3)),
    (Network(width=8, depth=2, stem=4), (30, 45, 3)),
    (Network(backbone="resnet18", weights=None, width=8), COLOUR),
    (Network(backbone="resnet50", weights=None, width=8), GREY),
    (Network(backbone="resnet18", weights=None, width=8, stages=2), COLOUR),
    (Network(backbone="efficientnet-lite0", weights=None, width=8, stages=3), COLOUR),
    (Network(backbone="efficientnet-lite0", weights=None, width=8, stages=4), COLOUR),
]


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet-lite0"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_lower_blocks_of_a_backbone_compute_what_they_compute_in_it(
    backbone: Literal["resnet18", "efficientnet-lite0"], count: int
) -> None:
    whole = build(Network(backbone=backbone, weights=None, width=8), COLOUR).encoder.eval()
    lower = build(Network(backbone=backbone, weights=None, width=8, stages=count), COLOUR).encoder.eval()
    state = whole.state_dict()
    lower.load_state_dict({name: state[name] for name in lower.state_dict()})
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = whole(image), lower(image)
    assert len(found.maps) == count
    assert all(torch.equal(one, other) for one, other in zip(found.maps, expected.maps, strict=False))
    torch.testing.assert_close(found.code, expected.maps[count - 1].mean(dim=(2, 3)))


def test_a_backbone_has_so_many_maps() -> None:
    with pytest.raises(TrainingError, match=r"network\.stages=6: efficientnet-lite0 has 5"):
        build(Network(backbone="efficientnet-lite0", weights=None, stages=6), COLOUR)
    with pytest.raises(ValueError, match=r"stages are of a backbone, not of conv: set network\.backbone"):
        Network(stages=3)


@pytest.mark.parametrize(("network", "shape"), NETWORKS, ids=lambda value: str(getattr(value, "kind", value)))
def test_what_goes_in_comes_out_and_the_stated_shapes_are_true(network: Network, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    net = build(network, shape)
    image = torch.rand(2, channels, height, width)
    encoded = net.encode(image)
    assert encoded.code.shape == (2, net.latent)
    assert [tuple(each.shape[1:]) for each in encoded.maps] == net.encoder.maps
    assert net.decoder(encoded.code).shape == image.shape
    assert net.read(image, "embedding").shape == (2, net.latent)
    assert net.read(image, "features").shape == (2, net.pool.size)
    assert (encoded.log_variance is not None) == network.variational


@pytest.mark.parametrize(("network", "shape"), NETWORKS, ids=lambda value: str(getattr(value, "kind", value)))
def test_the_blocks_hold_every_weight_of_the_encoder_once(network: Network, shape: tuple[int, int, int]) -> None:
    net = build(network, shape)
    held = [id(p) for block in net.blocks().values() for p in block.parameters()]
    assert sorted(held) == sorted(id(p) for p in net.encoder.parameters())
    assert len(net.blocks()) >= 2


def test_colour_trains_with_channels_last() -> None:
    """In a process of its own: what went wrong once was memory, and ended the process."""
    code = """
import torch
from training.networks import head
from training.networks.autoencoder import build
from training.recipe import Network
net = build(Network(width=16), (64, 64, 3))
net.encoder.to(memory_format=torch.channels_last)
for count in (128, 112) * 4:
    images = torch.rand(count, 64, 64, 3).permute(0, 3, 1, 2)
    net.encoder.zero_grad()
    net.encode(images).code.square().mean().backward()
    kept = [torch.rand(1000 * size) for size in range(50)]
print("trained")
"""
    home = Path(training.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "trained"), done.stderr[-500:]


def test_the_seeds_stages() -> None:
    """28 → 14 → 7 → 4, a code of 8×4×4."""
    net = build(Network(kind="conv-seed"), GREY)
    assert net.encoder.maps == [(16, 14, 14), (8, 7, 7), (8, 4, 4)]
    assert net.latent == 128


def test_the_dense_layers_are_the_literatures() -> None:
    net = build(Network(kind="dense", latent=32), GREY)
    linear = [m for part in (net.encoder, net.decoder) for m in part.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(784, 512), (512, 32), (32, 512), (512, 784)]


@pytest.mark.parametrize("side", [1, 3, 4, 7, 14, 28, 56])
@pytest.mark.parametrize("grid", [4, 7])
def test_pooling_is_adaptive_averaging(side: int, grid: int) -> None:
    image = torch.rand(3, 5, side, side + 2)
    cells = min(grid, side), min(grid, side + 2)
    expected = torch.nn.functional.adaptive_avg_pool2d(image, cells).flatten(1)
    pool = Pool([(5, side, side + 2)], grid)
    torch.testing.assert_close(pool([image]), expected)
    assert pool.size == expected.shape[1]
    if side + 2 > grid:
        largest = torch.nn.functional.adaptive_max_pool2d(image, cells).flatten(1)
        expected = torch.cat([expected, largest], dim=1)
    pool = Pool([(5, side, side + 2)], grid, maxima=True)
    torch.testing.assert_close(pool([image]), expected)
    assert pool.size == expected.shape[1]


def test_without_shortcuts_a_stage_is_one_plain_convolution() -> None:
    net = build(Network(width=8, shortcuts=False), GREY)
    convolutions = [m for m in net.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride) for m in convolutions] == [
        (1, 8, (2, 2)), (8, 16, (2, 2)), (16, 32, (2, 2)),
    ]  # fmt: skip


def test_the_seed_on_another_size_is_refused_with_the_mend() -> None:
    with pytest.raises(TrainingError, match="takes 28×28 images, not 64×64"):
        build(Network(kind="conv-seed"), (64, 64, 1))


# --- torchvision's names -----------------------------------------------------------------------------------------


def torchvision_names(kind: str) -> set[str]:
    """The state dict that torchvision's resnet18 and resnet50 have, from their published structure."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    depths, convolutions = {"resnet18": ((2, 2, 2, 2), 2), "resnet50": ((3, 4, 6, 3), 3)}[kind]
    names = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{part}" for part in norm)}
    for layer, depth in enumerate(depths, 1):
        for block in range(depth):
            prefix = f"layer{layer}.{block}"
            for number in range(1, convolutions + 1):
                names |= {f"{prefix}.conv{number}.weight", *(f"{prefix}.bn{number}.{part}" for part in norm)}
            if block == 0 and (layer > 1 or kind == "resnet50"):
                names |= {f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{part}" for part in norm)}
    return names


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
def test_weights_under_torchvisions_names_load(kind: str, tmp_path: object) -> None:
    path = f"{tmp_path}/weights.pth"
    made = build(Network(backbone=kind, weights=None, width=8), COLOUR).encoder.state_dict()  # type: ignore[arg-type]
    fc = {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
    assert set(made) | set(fc) == torchvision_names(kind)
    torch.save({**{name: torch.full_like(value, 0.5) for name, value in made.items()}, **fc}, path)
    loaded = build(Network(backbone=kind, width=8, weights=path), COLOUR)  # type: ignore[arg-type]
    assert all(
        (value.float() == (0.5 if value.is_floating_point() else 0)).all()
        for value in loaded.encoder.state_dict().values()
    )


# --- ResNet-18 by its published structure, in numpy ---------------------------------------------------------------


def convolved(image: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """(C, H, W) * (made, C, k, k)."""
    kernel = weight.shape[-1]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight)


def normed(image: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    weight, bias, mean, variance = (
        state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (image - mean) / np.sqrt(variance + 1e-5) * weight + bias


def resnet18(pixels: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8 → (512,), the global average."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    image = np.maximum(normed(convolved(image, state["conv1.weight"], 2, 3), state, "bn1"), 0)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    image = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            made = convolved(image, state[f"{name}.conv1.weight"], stride, 1)
            made = np.maximum(normed(made, state, f"{name}.bn1"), 0)
            made = normed(convolved(made, state[f"{name}.conv2.weight"], 1, 1), state, f"{name}.bn2")
            if stride > 1:
                image = convolved(image, state[f"{name}.downsample.0.weight"], stride, 0)
                image = normed(image, state, f"{name}.downsample.1")
            image = np.maximum(made + image, 0)
    return image.mean(axis=(1, 2))


@pytest.mark.parametrize(("height", "width", "channels"), [(64, 64, 3), (40, 71, 3), (33, 48, 1)])
def test_our_resnet18_is_the_published_network(height: int, width: int, channels: int, tmp_path: Path) -> None:
    """Weights of a file with torchvision's names, and norms whose statistics are their own."""
    torch.manual_seed(0)
    state = build(Network(backbone="resnet18", weights=None), COLOUR).encoder.state_dict()
    for name, value in state.items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.3)
    torch.save({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "w.pth")
    net = build(Network(backbone="resnet18", weights=str(tmp_path / "w.pth")), (height, width, channels))
    net.encoder.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    expected = resnet18(np.repeat(pixels, 3 // channels, axis=2), {n: v.double().numpy() for n, v in state.items()})
    with torch.no_grad():
        found = net.read(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, "embedding")[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_weights_that_are_not_weights_are_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/weights.pth"
    with pytest.raises(TrainingError, match="cannot be read"):
        build(Network(backbone="resnet18", weights=path), COLOUR)
    np.save(path, np.zeros(3))
    with pytest.raises(TrainingError, match="cannot be read"):
        build(Network(backbone="resnet18", weights=f"{path}.npy"), COLOUR)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match="not of resnet18"):
        build(Network(backbone="resnet18", weights=path), COLOUR)


@pytest.mark.parametrize("hidden", [0, 7])
def test_a_head_comes_back_from_its_weights(hidden: int) -> None:
    made = head.make(5, 3, hidden)
    again = head.like(made.state_dict())
    points = torch.rand(4, 5)
    assert torch.equal(made(points), again(points))
    assert (head.labels_of(again), head.reading(again).in_features) == (3, 5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_code_is_what_its_activation_makes_of_it(kind: Literal["dense", "conv"]) -> None:
    codes = {}
    for activation in ("linear", "relu", "sigmoid"):
        torch.manual_seed(0)
        net = build(Network(kind=kind, width=4, activation=activation), GREY)
        net.encoder.eval()
        codes[activation] = net.read(torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1)), "embedding")
    assert torch.equal(codes["relu"], codes["linear"].relu())
    assert torch.equal(codes["sigmoid"], codes["linear"].sigmoid())
    assert codes["linear"].min() < 0
