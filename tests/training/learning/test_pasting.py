"""Pieces of other images, pasted; and lines."""

import pytest
import torch

from training.learning.pasting import continued, grain, pasted


def surfaces(count: int = 8, channels: int = 3, height: int = 48, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def drawn(images: torch.Tensor, seed: int = 0, **changes: float) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return pasted(images, **{"most": 3, "sound": 0.2, "seamless": 0.7, "lines": 0.5, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_in_range_and_the_mask_is_what_changed(channels: int) -> None:
    images = surfaces(channels=channels)
    before = images.clone()
    made, mask = drawn(images)
    assert torch.equal(images, before)
    assert made.shape == images.shape
    assert made.min() >= 0
    assert made.max() <= 1
    assert torch.equal(mask, (made - images).abs().mean(1) > 0.3 * grain(images)[:, 0])
    assert mask.any(dim=(1, 2)).sum() >= 4
    assert 0 < mask.float().mean() < 0.3


def test_a_seed_gives_the_same_pieces_and_another_one_others() -> None:
    images = surfaces()
    for first, second in zip(drawn(images, 3), drawn(images, 3), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(drawn(images, 3)[0], drawn(images, 4)[0])


def test_a_share_of_the_images_stays_as_it_is() -> None:
    images = surfaces(64, height=32, width=32)
    made, mask = drawn(images, sound=0.5)
    same = (made == images).all(dim=(1, 2, 3))
    assert 16 <= same.sum() <= 48
    assert not mask[same].any()


def test_pieces_come_from_other_images() -> None:
    """Of two images, one is black and the other white: without a seam, a piece is of the other's level."""
    images = torch.cat([torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)])
    made, mask = drawn(images, seed=1, sound=0, seamless=0, lines=0)
    for before, after, where in zip(images, made, mask, strict=True):
        assert where.any()
        assert (after[0][where] - before[0][where]).abs().mean() > 0.3


def test_a_seamless_piece_takes_the_levels_of_its_place() -> None:
    """Of flat images of any level nothing is to be seen in each other; where edges show, it is."""
    images = torch.linspace(0.1, 0.9, 8).view(8, 1, 1, 1).expand(8, 3, 64, 64)
    made, _ = drawn(images, sound=0, seamless=1, lines=0)
    assert (made - images).abs().max() < 1e-4
    made, _ = drawn(images, sound=0, seamless=0, lines=0)
    assert (made - images).abs().max() > 0.1


def test_what_is_not_known_is_continued_from_its_rim() -> None:
    """A slope goes on, nearly; what is known is left alone; and where nothing is known, there is nothing."""
    slope = torch.linspace(0, 1, 64).expand(1, 2, 48, 64)
    known = torch.ones(1, 48, 64, dtype=torch.bool)
    known[:, 15:30, 20:40] = False
    holed = torch.where(known[:, None], slope, 7.0)
    found = continued(holed, known)
    assert torch.equal(found[:, :, known[0]], slope[:, :, known[0]])
    assert (found - slope).abs().max() < 0.1
    assert not continued(holed, torch.zeros_like(known)).any()


def has_squares(mask: torch.Tensor) -> torch.Tensor:
    """(N, H, W) bool → (N,): whether 11 × 11 pixels are marked together."""
    return (torch.nn.functional.avg_pool2d(mask[:, None].float(), 11, 1) == 1).flatten(1).any(dim=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_lines_are_thin_and_long(channels: int) -> None:
    images = 0.5 + 0.1 * (surfaces(32, channels, 96, 128) - 0.5)
    _, mask = drawn(images, sound=0, lines=1, most=1)
    assert not has_squares(mask).any()
    spans = [max((place.max() - place.min()).item() for place in each.nonzero().T) for each in mask if each.any()]
    assert len(spans) > 16
    assert sorted(spans)[len(spans) // 2] > 12
    _, mask = drawn(images, sound=0, seamless=0, lines=0, most=1)
    assert has_squares(mask).any()


def test_a_line_stands_out_by_as_much_as_the_grain_allows() -> None:
    """In an image of three times the contrast, the same line changes pixels three times as much."""
    smooth = 0.5 + 0.05 * (surfaces() - 0.5)
    rough = 0.5 + 3 * (smooth - 0.5)
    changes = [drawn(images, sound=0, lines=1)[0] - images for images in (smooth, rough)]
    assert changes[0].abs().amax(dim=(1, 2, 3)).min() > 0
    torch.testing.assert_close(3 * changes[0], changes[1], atol=1e-5, rtol=1e-3)


def test_lines_are_dark_and_light() -> None:
    images = torch.full((64, 1, 64, 64), 0.5)
    made, _ = drawn(images, sound=0, lines=1, most=1)
    lighter = (made - images).sum(dim=(1, 2, 3)) > 0
    assert 10 < lighter.sum() < 40
