"""A data set drawn by code, its recipe, and a run of it."""

from pathlib import Path

import pytest
from support import draw_folder, draw_inspection

from training.__main__ import main


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("garments")
    draw_folder(folder / "train", 120, seed=1)
    draw_folder(folder / "test", 30, seed=2)
    return folder


@pytest.fixture(scope="session")
def recipe(images: Path) -> Path:
    path = images / "drawn.toml"
    path.write_text(f"""
name = "drawn"
title = "garments drawn by code"
source = "{images}"
target = "{images}"
false_alarm_rate = 0.05
[split]
validation = 80
calibration = 120
[pretrain]
epochs = 8
rate = 5e-3
[network]
kind = "conv-seed"
[transfer]
reads = "embedding"
epochs = 20
rate = 3e-2
[decoder]
epochs = 2
""")
    return path


@pytest.fixture(scope="session")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(["run", str(recipe), "--models", str(folder / "models"), "--run", str(folder / "run")]) == 0
    return folder


@pytest.fixture(scope="session")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sound surfaces alone by a recipe that learns labels, where there are any: its folder, set and bundle."""
    folder = tmp_path_factory.mktemp("inspected")
    data = draw_inspection(folder / "set", sound=100, defects=10)
    path = folder / "surfaces.toml"
    path.write_text(f"""
name = "surfaces"
title = "surfaces drawn by code"
source = "{data}"
target = "{data}"
false_alarm_rate = 0.05
[input]
height = 32
width = 32
[network]
kind = "dense"
hidden = 32
latent = 8
[pretrain]
epochs = 4
[transfer]
mode = "full"
[decoder]
epochs = 4
""")
    assert main(["run", str(path), "--models", str(folder / "models"), "--run", str(folder / "run")]) == 0
    return folder
