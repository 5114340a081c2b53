import pytest
import torch

from training.augment import augmented, erased
from training.recipe import Augment


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(64, 3, 12, 20)


def test_nothing_asked_for_changes_nothing(images: torch.Tensor) -> None:
    assert augmented(images, Augment()) is images


@pytest.mark.parametrize(
    "augment",
    [
        Augment(flip="across"),
        Augment(flip="both"),
        Augment(shift=2),
        Augment(turn=30),
        Augment(scale=0.2),
        Augment(flip="both", shift=3, turn=180, scale=0.5),
    ],
    ids=str,
)
def test_the_given_images_stay_and_what_comes_out_is_an_image(augment: Augment, images: torch.Tensor) -> None:
    before = images.clone()
    changed = augmented(images, augment)
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_half_the_images_are_flipped_each_way(images: torch.Tensor) -> None:
    seen = set()
    for after, before in zip(augmented(images, Augment(flip="both")), images, strict=True):
        for name, candidate in (
            ("as it was", before),
            ("across", before.flip(2)),
            ("down", before.flip(1)),
            ("both", before.flip(1, 2)),
        ):
            if torch.equal(after, candidate):
                seen.add(name)
    assert seen == {"as it was", "across", "down", "both"}


def test_a_shift_moves_whole_pixels_and_black_comes_in(images: torch.Tensor) -> None:
    offsets = set()
    for after, before in zip(augmented(images + 0.5, Augment(shift=1)), images + 0.5, strict=True):
        padded = torch.nn.functional.pad(before, (1, 1, 1, 1))
        where = [(y, x) for y in range(3) for x in range(3) if torch.equal(padded[:, y : y + 12, x : x + 20], after)]
        assert len(where) == 1
        offsets.add(where[0])
    assert len(offsets) == 9


def test_a_quarter_turn_is_numpys() -> None:
    """grid_sample's axes are easily exchanged: a half turn of an oblong image tells."""
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 12, 20)
    image[..., 2, 3] = 1
    found = set()
    for _ in range(200):
        changed = augmented(image, Augment(turn=180))
        at = int(changed.flatten().argmax())
        found.add((at // 20, at % 20))
    distances = {round(((y - 5.5) ** 2 + (x - 9.5) ** 2) ** 0.5) for y, x in found if (y, x) != (0, 0)}
    assert distances <= {6, 7, 8}, "a turn keeps the distance from the centre, on both axes alike"
    assert len(found) > 10


def test_the_share_of_images_that_are_erased_and_of_pixels_in_them(images: torch.Tensor) -> None:
    changed = erased(images, Augment(erase=0.5)) != images
    share = changed.any(dim=1).flatten(1).float().mean(1)
    assert 0.3 < (share > 0).float().mean() < 0.7
    assert share.max() < 0.45
    assert erased(images, Augment(shift=2)) is images


def test_the_same_seed_draws_the_same(images: torch.Tensor) -> None:
    everything = Augment(flip="both", shift=3, turn=20, scale=0.2, erase=0.5)
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(erased(augmented(images, everything), everything))
    assert torch.equal(*drawn)
