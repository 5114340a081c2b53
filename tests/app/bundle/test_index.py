"""The search for the nearest examples is exact, and an index that does not fit is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from support import LATENT, npz_bytes, save_tiny, tiny, tiny_index

from app.bundle import load, save
from app.bundle.index import FILE, MOST_FOUND, Index, in_blocks, text_of
from app.errors import OperationUnavailable, ReferenceInvalid

RNG = np.random.default_rng(0)


def of(codes: np.ndarray) -> Index:
    size = codes.shape[1]
    return Index({"mean": np.zeros(size), "basis": np.eye(size), "codes": codes}, size)


@pytest.mark.parametrize("count", [1, 7, 4096, 9001])
@pytest.mark.parametrize("falling", [True, False])  # False: no number tells more than another, so all are compared
@pytest.mark.parametrize("ordered", [True, False])
def test_the_nearest_are_those_of_a_comparison_with_all(count: int, falling: bool, ordered: bool) -> None:
    scale = 0.6 ** np.arange(24) if falling else np.ones(24)
    codes, queries = ((RNG.normal(size=(rows, 24)) * scale).astype(np.float32) for rows in (count, 20))
    if ordered:
        codes = codes[in_blocks(codes)]
    rows, distances = of(codes).nearest(queries)
    every = np.linalg.norm(queries[:, None] - codes, axis=2)
    order = np.argsort(every, axis=1)[:, :MOST_FOUND]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(distances, np.take_along_axis(every, order, axis=1), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 32, 33, 9001])
def test_an_order_in_blocks_has_each_row_once_and_few_blocks_near_a_point(count: int) -> None:
    codes = RNG.normal(size=(count, 3)).astype(np.float16)
    order = in_blocks(codes)
    assert sorted(order.tolist()) == list(range(count))
    if count > 4096:
        blocks = codes[order][: count // 32 * 32].astype(np.float32).reshape(-1, 32, 3)
        assert np.ptp(blocks, axis=1).mean() < 0.3 * np.ptp(codes, axis=0).mean()


def test_of_many_equal_examples_the_first_are_found_at_no_distance() -> None:
    codes = np.repeat(RNG.normal(size=(1, 8)), 5000, axis=0).astype(np.float32)
    rows, distances = of(codes).nearest(codes[:1])
    assert len(set(rows[0].tolist())) == MOST_FOUND
    assert distances.max() == 0


def test_an_example_has_what_the_index_knows_of_it() -> None:
    index = Index(tiny_index(), LATENT)
    assert len(index) == 40
    assert (index.example(4).label, index.example(4).file) == ("dog", "folder/4.png")
    assert index.example(5).label is None
    assert (index.example(7).thumbnail or b"")[:4] == b"RIFF"
    bare = of(np.ones((3, 2), np.float32)).example(1)
    assert (bare.label, bare.file, bare.thumbnail) == (None, None, None)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("mean", np.zeros(LATENT + 1, np.float32)),
        ("basis", np.full((LATENT, LATENT), np.nan)),
        ("codes", np.zeros((40, LATENT + 1), np.float16)),
        ("codes", np.zeros((0, LATENT), np.float16)),
        ("labels", np.full(40, 3)),
        ("labels", np.full(39, 0)),
        ("labels", np.full(40, -2)),
        ("files", text_of(["one", "two"])),
        ("label_names", np.frombuffer(b"\xff", np.uint8)),
        ("thumbnail_sizes", np.full(40, 1)),
        ("thumbnail_sizes", np.full(40, -1)),
    ],
)
def test_an_array_that_does_not_fit_is_named(tmp_path: Path, array: str, value: np.ndarray) -> None:
    fields, files = tiny(index=True)
    files[FILE] = npz_bytes(tiny_index() | {array: value})
    with pytest.raises(ReferenceInvalid, match=f"tiny/1/{FILE}: array {array}"):
        save(tmp_path, "tiny", fields, files)


def test_a_bundle_without_an_index_lacks_the_operation(tmp_path: Path) -> None:
    with pytest.raises(OperationUnavailable, match="no index of images, so it cannot similar"):
        load(save_tiny(tmp_path)).require("similar")
    load(save_tiny(tmp_path, "with", index=True)).require("similar")
