from pathlib import Path

import pytest

import app
from app.bundle.drawings import GARMENTS, garment, golden_files, samples
from app.bundle.encode import png

SAMPLES = Path(app.__file__).parent / "web/samples"


@pytest.mark.parametrize("name", samples())
def test_the_sample_files_are_what_the_code_draws(name: str) -> None:
    from PIL import Image, ImageChops

    with Image.open(SAMPLES / f"{name}.png") as sample:
        assert ImageChops.difference(sample, samples()[name]).getbbox() is None


def test_there_is_no_sample_that_the_code_does_not_draw() -> None:
    assert {path.stem for path in SAMPLES.glob("*.png")} == set(samples())


def test_drawing_is_repeatable() -> None:
    assert golden_files() == golden_files()
    assert len({png(garment(kind)) for kind in GARMENTS}) == len(GARMENTS)
