from pathlib import Path

import numpy as np
import torch

from training.learning.views import drawn_rows, with_views
from training.learning.workshop import Workshop, open_workshop
from training.recipe import Augment, Network, Recipe


def shop(folder: Path) -> Workshop:
    recipe = Recipe(name="x", title="", source="a", target="a", network=Network(kind="conv-seed"))
    return open_workshop(recipe, (28, 28, 1), folder, untrained=True)


def test_the_images_come_first_then_views_of_all_and_always_the_same(tmp_path: Path) -> None:
    rng, own = np.random.default_rng(0), shop(tmp_path)
    parts = [rng.integers(0, 256, (count, 28, 28, 1), np.uint8) for count in (5, 3)]
    whole = np.concatenate(parts)
    before = torch.get_rng_state()
    made = with_views(own, parts, Augment(flip="across"), 4)
    assert torch.equal(torch.get_rng_state(), before), "training's own random numbers are untouched"
    assert made.shape == (40, 28, 28, 1)
    assert np.array_equal(made[:8], whole)
    flipped = 0
    for row in range(8, 40):
        image = whole[row % 8]
        same, mirrored = np.array_equal(made[row], image), np.array_equal(made[row], image[:, ::-1])
        assert same or mirrored
        flipped += mirrored
    assert 4 < flipped < 28
    torch.manual_seed(9)
    assert np.array_equal(made, with_views(own, parts, Augment(flip="across"), 4))


def test_a_single_set_without_views_is_not_copied(tmp_path: Path) -> None:
    images = np.zeros((4, 28, 28, 1), np.uint8)
    assert with_views(shop(tmp_path), [images], Augment(), 0) is images


def test_rows_are_of_the_batchs_images_and_any_view() -> None:
    torch.manual_seed(0)
    batch = torch.arange(50)
    rows = drawn_rows(batch, count=100, views=3)
    assert torch.equal(rows % 100, batch)
    assert set((rows // 100).tolist()) == {0, 1, 2, 3}
    assert torch.equal(drawn_rows(batch, 100, 0), batch)
