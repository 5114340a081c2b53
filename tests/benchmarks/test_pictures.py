from pathlib import Path

import numpy as np
from PIL import Image
from support import ROOT

from benchmarks.pictures import main


def test_the_pictures_are_those_of_the_page(tmp_path: Path) -> None:
    main(tmp_path)
    drawn, kept = (np.asarray(Image.open(folder / "transfer.png"), int) for folder in (tmp_path, ROOT / "docs"))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).max() <= 3, "another processor may round otherwise"
    assert (tmp_path / "scores.svg").read_text() == (ROOT / "docs/scores.svg").read_text()
