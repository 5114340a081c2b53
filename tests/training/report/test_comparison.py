from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from training import recipe
from training.compare.results import Comparison, Result
from training.report.comparison import write


def test_table_picture_and_page_are_written(tmp_path: Path) -> None:
    arms = {"scratch": [0.5, 0.6, 0.7], "source": [0.4, 0.5, 0.6]}
    found = [Result(arm, 10, 100, seed, value) for arm, values in arms.items() for seed, value in enumerate(values)]
    found += [Result("scratch", None, 5000, seed, 0.9) for seed in range(3)]
    path = write(tmp_path, Comparison(recipe.load("seed", []), 10_000, found))
    table = (tmp_path / "comparison.md").read_text()
    assert "| arm | 100 labels | 5,000 labels |" in table
    assert "| source | 50.0 ± 24.8 (-10.0 ± 0.0) |  |" in table
    HTMLParser().feed(path.read_text())
    assert ElementTree.fromstring((tmp_path / "comparison.svg").read_text()).tag.endswith("svg")
    assert "NEGATIVE TRANSFER" in path.read_text()
