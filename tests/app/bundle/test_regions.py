import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from app.bundle.regions import label_regions


def slow_regions(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """By filling each from one of its pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        own, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            own.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(own)
    return found


@given(mask=arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.booleans()))
def test_regions_are_what_touches_at_a_side_or_a_corner(mask: np.ndarray) -> None:
    labels, count = label_regions(mask)
    expected = slow_regions(mask)
    assert count == len(expected)
    assert np.array_equal(labels > 0, mask)
    for region in expected:
        assert len({int(labels[at]) for at in region}) == 1
    assert len({int(labels[next(iter(region))]) for region in expected}) == count


def test_arms_that_meet_far_below_are_one_region() -> None:
    comb = np.zeros((40, 41), bool)
    comb[:, ::2] = True
    assert label_regions(comb)[1] == 21
    comb[-1] = True
    assert label_regions(comb)[1] == 1
