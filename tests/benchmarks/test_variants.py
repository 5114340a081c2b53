from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.methods.variants import dead_units, share_left, shuffled, units_in_use
from training import recipe
from training.data.imageset import ImageSet
from training.learning.workshop import Workshop, open_workshop
from training.networks.encoded import Encoded

IMAGES = np.random.default_rng(0).integers(1, 255, (50, 28, 28, 1), np.uint8)


class Copies(nn.Module):
    def forward(self, images: Tensor) -> Encoded:
        return Encoded(images.flatten(1).logit(), [])


class Mean(nn.Module):
    def forward(self, code: Tensor) -> Tensor:
        mean = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).div(255).mean(0).logit()
        return mean.expand(len(code), *mean.shape)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return open_workshop(recipe.load("sparse", []), (28, 28, 1), tmp_path, untrained=True)


def test_a_copy_leaves_nothing_and_the_mean_image_all_of_the_variance(workshop: Workshop) -> None:
    data = ImageSet(IMAGES, np.array([], np.int64), ())
    copies = replace(workshop, net=replace(workshop.net, encoder=Copies(), decoder=nn.Unflatten(1, (1, 28, 28))))  # type: ignore[arg-type]
    assert share_left(copies, data) == pytest.approx(0, abs=1e-6)
    assert share_left(replace(workshop, net=replace(workshop.net, decoder=Mean())), data) == pytest.approx(1, rel=1e-4)


def test_pixels_are_shuffled_alike_in_every_image() -> None:
    found = shuffled(IMAGES, np.random.default_rng(1))
    assert found.shape == IMAGES.shape
    flat = found.reshape(50, -1)
    order = [int(np.flatnonzero((IMAGES.reshape(50, -1) == column[:, None]).all(0))[0]) for column in flat.T]
    assert sorted(order) == list(range(784)), "each pixel of all images lies in one place"
    assert order != list(range(784))


def test_units_that_never_vary_are_dead_and_an_image_uses_those_that_are_not_nothing() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(1000, 8)).astype(np.float32)
    assert dead_units(codes) == 0
    assert units_in_use(codes) == pytest.approx(2 / np.pi, abs=0.1)
    codes[:, :2] = 5
    assert dead_units(codes) == 0.25
    assert units_in_use(np.eye(8, dtype=np.float32)) == pytest.approx(1 / 8)
    assert units_in_use(np.zeros((3, 8), np.float32)) == 0
