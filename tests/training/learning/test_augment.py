import pytest
import torch

from training.learning.augment import augmented, erased
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
        Augment(crop=0.3),
        Augment(light=0.5),
        Augment(flip="both", crop=0.5, shift=3, turn=180, scale=0.5, light=1),
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


def test_a_square_is_flipped_eight_ways() -> None:
    torch.manual_seed(0)
    images = torch.rand(128, 1, 6, 6)
    ways = {
        name: (lambda image, turns=turns, flip=flip: image.rot90(turns, (1, 2)).flip([2] if flip else []))
        for turns in range(4)
        for flip in (False, True)
        for name in [(turns, flip)]
    }
    seen = set()
    for after, before in zip(augmented(images, Augment(flip="any")), images, strict=True):
        same = [name for name, way in ways.items() if torch.equal(way(before), after)]
        assert len(same) == 1
        seen.add(same[0])
    assert seen == set(ways)


def test_a_crop_is_a_part_of_the_image_enlarged_on_both_axes_alike() -> None:
    """A slope keeps its straight lines: its steps tell the part's sides, its values where the part lies."""
    torch.manual_seed(0)
    down, across = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 40), indexing="ij")
    slopes = torch.stack([down, across])[None].repeat(500, 1, 1, 1)
    cropped = augmented(slopes, Augment(crop=0.25))
    sides = (
        (cropped[:, 0, 18, 20] - cropped[:, 0, 6, 20]) / 12 * 23,
        (cropped[:, 1, 12, 30] - cropped[:, 1, 12, 10]) / 20 * 39,
    )
    area = sides[0] * sides[1]
    assert 0.2 < area.min() < 0.3, "no smaller part than asked for"
    assert 0.9 < area.max() <= 1.001
    assert all(side.min() > 0.3 and side.max() <= 1.001 for side in sides)
    middles = cropped[:, :, 11:13, 19:21].mean((2, 3))
    assert (middles.amin(0) < 0.35).all()
    assert (middles.amax(0) > 0.65).all()


def test_light_changes_an_image_as_a_whole_and_differently_each_time() -> None:
    torch.manual_seed(0)
    images = (0.4 + 0.2 * torch.rand(1, 1, 6, 6)).repeat(400, 1, 1, 1)
    lit = augmented(images, Augment(light=0.4))
    contrast = lit.std((1, 2, 3)) / images[0].std()
    brightness = lit.mean((1, 2, 3)) - images[0].mean()
    assert 0.6 - 1e-4 <= contrast.min() < 0.65
    assert 1.35 < contrast.max() <= 1.4 + 1e-4
    assert -0.2 - 1e-4 <= brightness.min() < -0.18
    assert 0.18 < brightness.max() <= 0.2 + 1e-4
    assert abs(torch.corrcoef(torch.stack([contrast, brightness]))[0, 1]) < 0.2


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
    everything = Augment(flip="both", crop=0.5, shift=3, turn=20, scale=0.2, light=0.2, erase=0.5)
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(erased(augmented(images, everything), everything))
    assert torch.equal(*drawn)
