import pytest
import torch

from training.learning.augment import _STRONGEST, _coloured, _moved, augmented, erased
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
        Augment(rand_augment=1),
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


# --- RandAugment ------------------------------------------------------------------------------------------------


def changes(**sizes: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((64,), sizes.get(name, 0.0)) for name in _STRONGEST}


def test_changes_of_size_nothing_change_nothing(images: torch.Tensor) -> None:
    torch.testing.assert_close(_moved(images, changes()), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(_coloured(images, changes(), torch.ones(64, 3, 1, 1)), images)


def test_geometry_moves_pixels_as_it_says(images: torch.Tensor) -> None:
    """A shift by half of half the sides; a shear by a pixel sideways for each pixel down; a quarter turn of squares."""
    moved = _moved(images, changes(shift_x=0.5))
    torch.testing.assert_close(moved[..., :15], images[..., 5:], atol=1e-4, rtol=0)
    sheared = _moved(images, changes(shear_x=1.0))
    for row in (6, 8):  # the middle lies between rows 5 and 6
        start = row - 5
        torch.testing.assert_close(
            sheared[:, :, row, : 20 - start],
            (images[:, :, row, start:] + images[:, :, row, start - 1 : -1]) / 2 if start else images[:, :, row],
            atol=1e-4,
            rtol=0,
        )
    square = images[..., :12]
    turned = _moved(square, changes(turn=torch.pi / 2))
    torch.testing.assert_close(turned, square.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_colours_change_as_they_say(images: torch.Tensor) -> None:
    tints = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(64, -1, -1, -1)
    tinted = _coloured(images / 2, changes(tint=0.5), tints)
    torch.testing.assert_close(tinted, images / 2 * torch.tensor([1.5, 1.0, 0.5]).view(1, 3, 1, 1))
    grey = _coloured(images, changes(saturation=-1), tints)
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    flat = _coloured(images, changes(contrast=-1), tints)
    torch.testing.assert_close(flat, images.mean((1, 2, 3), keepdim=True).expand_as(images))
    assert len(_coloured(images, changes(posterise=5), tints).unique()) == 2**3


def test_each_image_gets_two_changes_and_none_is_left_out(images: torch.Tensor) -> None:
    """Of grey pictures without structure: geometry, saturation and contrast leave them, the others do not."""
    torch.manual_seed(0)
    same = torch.full((4000, 3, 4, 4), 0.31)
    changed = augmented(same, Augment(rand_augment=1))
    left = ((changed - same).abs() < 1e-5).flatten(1).all(1).float().mean().item()
    assert abs(left - 7 * 6 / (10 * 9)) < 0.05, "both drawn among the seven that leave them"
    weak = augmented(same, Augment(rand_augment=0.1))
    assert (weak - same).abs().mean() < 0.3 * (changed - same).abs().mean()
