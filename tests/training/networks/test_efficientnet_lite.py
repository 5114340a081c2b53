"""The published weights in our modules: equal to a forward pass written in numpy, and right about photographs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from app.bundle import preprocess
from training.networks import weights
from training.networks.autoencoder import build
from training.networks.efficientnet_lite import stages
from training.recipe import Input, Network

LITE0 = Network(backbone="efficientnet-lite0")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    try:
        return dict(weights.read(weights.path_of(LITE0), "lite0"))
    except weights.TrainingError as error:
        pytest.skip(f"{error}")


# --- EfficientNet-Lite0 by its published table, in numpy ---------------------------------------------------------

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the sixteen blocks


def same(image: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    """(C, H, W) * (made, C or 1, k, k), padded as TensorFlow's SAME does."""
    made, of_each, kernel, _ = weight.shape
    spans = []
    for side in image.shape[1:]:
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        spans.append((total // 2, total - total // 2))
    padded = np.pad(image, ((0, 0), *spans))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    if of_each == 1 and made == len(image):
        return np.einsum("chwij,cij->chw", windows, weight[:, 0])
    return np.einsum("chwij,ocij->ohw", windows, weight)


def norm(image: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    weight, bias, mean, variance = (
        state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (image - mean) / np.sqrt(variance + 1e-3) * weight + bias


def relu6(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 6)


def in_numpy(pixels: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8 → (1280,)."""
    image = (pixels.transpose(2, 0, 1).astype(np.float64) - 127) / 128
    image = relu6(norm(same(image, state["_conv_stem.weight"], 2), state, "_bn0"))
    for number, stride in enumerate(STRIDES):
        name, before = f"_blocks.{number}", image
        if number:
            image = relu6(norm(same(image, state[f"{name}._expand_conv.weight"]), state, f"{name}._bn0"))
        image = relu6(norm(same(image, state[f"{name}._depthwise_conv.weight"], stride), state, f"{name}._bn1"))
        image = norm(same(image, state[f"{name}._project_conv.weight"]), state, f"{name}._bn2")
        if image.shape == before.shape:
            image = image + before
    return relu6(norm(same(image, state["_conv_head.weight"]), state, "_bn1")).mean(axis=(1, 2))


@pytest.mark.parametrize(("height", "width", "channels"), [(64, 64, 3), (96, 45, 3), (33, 64, 1)])
def test_our_lite0_is_the_published_network(
    published: dict[str, Tensor], height: int, width: int, channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    expected = in_numpy(np.repeat(pixels, 3 // channels, axis=2), {n: v.double().numpy() for n, v in published.items()})
    net = build(LITE0, (height, width, channels))
    net.encoder.eval()
    with torch.no_grad():
        found = net.read(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, "embedding")[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("kind", "encoder", "blocks"),
    [
        ("efficientnet-lite0", 3_371_008, 16),
        ("efficientnet-lite1", 4_135_680, 21),
        ("efficientnet-lite2", 4_811_072, 21),
    ],
)
def test_sizes_are_the_published(kind: str, encoder: int, blocks: int) -> None:
    """Weights without the classifier: 4.65, 5.42 and 6.09 million with it."""
    net = build(Network(backbone=kind, weights=None), (64, 64, 3))  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.encoder.parameters()) == encoder
    assert sum(stage.repeats for stage in stages(kind)) == blocks


def test_the_lower_blocks_begin_with_the_published_weights(published: dict[str, Tensor]) -> None:
    state = build(LITE0.model_copy(update={"stages": 3}), (64, 64, 3)).encoder.state_dict()
    assert all(torch.equal(value, published[name]) for name, value in state.items())
    assert sum(value.numel() for value in state.values()) < 1e6


# ImageNet's classes that a garment may be taken for.
GARMENTS = {
    "t-shirt": {610, 841, 834, 617, 869, 474},  # jersey, sweatshirt, suit, lab coat, trench coat, cardigan
    "shoes": {770, 630, 502, 514, 774, 788},  # running shoe, loafer, clog, cowboy boot, sandal, shoe shop
    # Bathing cap, bearskin, bonnet, cowboy hat, crash helmet, football helmet, mortarboard, shower cap, ski mask,
    # sombrero.
    "hat": {433, 439, 452, 515, 518, 560, 667, 793, 796, 808},
}


@pytest.mark.parametrize("garment", GARMENTS)
def test_it_knows_photographs_of_clothes(published: dict[str, Tensor], garment: str) -> None:
    folder = Path(os.environ.get("GRAFT_DATA", "nowhere")) / "clothing/test" / garment
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    spec = Input(height=224, width=224, channels=3, resize="pad").spec()
    images = np.stack([preprocess(path.read_bytes(), spec) for path in sorted(folder.iterdir())[:16]])
    net = build(LITE0, spec.shape)
    net.encoder.eval()
    with torch.no_grad():
        code = net.read(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, "embedding")
        best = (code @ published["_fc.weight"].T + published["_fc.bias"]).topk(5).indices
    assert np.mean([bool(GARMENTS[garment] & set(five)) for five in best.tolist()]) > 0.5
