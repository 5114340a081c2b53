import io

import numpy as np
import pytest
from support import spec

from app.bundle import preprocess
from app.bundle.golden import make, verify
from app.bundle.golden import spec as golden_spec
from app.errors import GoldenMismatch

SHAPE = spec(28, 28)
SPEC = golden_spec(["embedding"], {})


def see(data: bytes) -> np.ndarray:
    return preprocess(data, SHAPE)


def run(images: np.ndarray) -> dict[str, np.ndarray]:
    return {"embedding": images.reshape(len(images), -1)[:, :5].astype(np.float32) / 255 * 100}


@pytest.fixture
def stored() -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(make(see, run))) as arrays:
        return dict(arrays)


def test_what_was_made_here_verifies_here(stored: dict[str, np.ndarray]) -> None:
    verify(stored, SPEC, see, run, "m/1/golden.npz")


def test_one_grey_level_in_one_pixel_is_too_much(stored: dict[str, np.ndarray]) -> None:
    stored["pixels"][3, 5, 5, 0] ^= 1
    with pytest.raises(GoldenMismatch, match="image 3 decodes to other pixels here, by up to 1 grey levels"):
        verify(stored, SPEC, see, run, "m/1/golden.npz")


@pytest.mark.parametrize("padding", ["background", "edge", (9,)])
def test_other_padding_is_noticed(padding: object) -> None:
    shapes = {name: spec(28, 28, resize="pad", padding=name) for name in ("background", "edge", (9,))}
    with np.load(io.BytesIO(make(lambda data: preprocess(data, shapes[padding]), run))) as arrays:
        stored = dict(arrays)
    for name, shape in shapes.items():
        if name == padding:
            verify(stored, SPEC, lambda data, shape=shape: preprocess(data, shape), run, "m/1/golden.npz")
        else:
            with pytest.raises(GoldenMismatch, match="decodes to other pixels here"):
                verify(stored, SPEC, lambda data, shape=shape: preprocess(data, shape), run, "m/1/golden.npz")


@pytest.mark.parametrize(("error", "passes"), [(0.5e-4, True), (2e-4, False), (float("nan"), False)])
def test_outputs_may_differ_by_the_tolerance_of_their_scale(
    stored: dict[str, np.ndarray], error: float, passes: bool
) -> None:
    scale = float(np.abs(stored["output:embedding"]).max())
    stored["output:embedding"][0, 0] += error * scale
    if passes:
        verify(stored, SPEC, see, run, "m/1/golden.npz")
    else:
        with pytest.raises(GoldenMismatch, match=r"embedding (is off by|must be finite)"):
            verify(stored, SPEC, see, run, "m/1/golden.npz")


@pytest.mark.parametrize("array", ["files", "lengths", "pixels", "output:embedding"])
def test_a_missing_array_is_named(stored: dict[str, np.ndarray], array: str) -> None:
    del stored[array]
    with pytest.raises(GoldenMismatch, match=array):
        verify(stored, SPEC, see, run, "m/1/golden.npz")


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("pixels", np.full((12, 28, 28, 1), np.nan)),
        ("pixels", np.zeros((), np.uint8)),
        ("lengths", np.zeros(12)),
        ("lengths", np.array("text")),
        ("files", np.zeros((), np.uint8)),
        ("files", np.zeros(4, np.uint8)),
        ("output:embedding", np.full((12, 5), np.inf, np.float32)),
        ("output:embedding", np.full((12, 5), 1j)),
        ("output:embedding", np.full((12, 5), "x")),
    ],
)
def test_arrays_that_are_not_what_they_should_be_are_named(
    stored: dict[str, np.ndarray], array: str, value: np.ndarray
) -> None:
    stored[array] = value
    with pytest.raises(GoldenMismatch, match=array):
        verify(stored, SPEC, see, run, "m/1/golden.npz")


def test_a_golden_image_that_cannot_be_decoded_here_is_a_mismatch(stored: dict[str, np.ndarray]) -> None:
    stored["files"][: stored["lengths"][0]] = 0
    with pytest.raises(GoldenMismatch, match="does not decode on this machine"):
        verify(stored, SPEC, see, run, "m/1/golden.npz")


def test_a_tensor_may_have_a_tolerance_of_its_own(stored: dict[str, np.ndarray]) -> None:
    """As the step of an INT8 graph: only that tensor's."""
    stored["output:embedding"][0, 0] += 0.009 * float(np.abs(stored["output:embedding"]).max())
    with pytest.raises(GoldenMismatch):
        verify(stored, SPEC, see, run, "m/1/golden.npz")
    verify(stored, golden_spec(["embedding"], {"embedding": 0.01}), see, run, "m/1/golden.npz")


def test_fewer_images_than_stated_are_refused(stored: dict[str, np.ndarray]) -> None:
    stored["lengths"] = stored["lengths"][:-1]
    with pytest.raises(GoldenMismatch, match="the manifest says"):
        verify(stored, SPEC, see, run, "m/1/golden.npz")
