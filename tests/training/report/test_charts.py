import re
from xml.etree import ElementTree

import numpy as np
import pytest

from training.report.charts import COLOURS, Series, histogram, lines, lines_file, points


def svg(figure: str) -> ElementTree.Element:
    """It must be well-formed, and every number on it finite."""
    assert "nan" not in figure
    assert "inf" not in figure.replace("info", "")
    return ElementTree.fromstring(figure)


def places(figure: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', figure)]


def test_higher_is_up_and_later_is_right() -> None:
    figure = lines("loss", [Series("a", [1, 2, 3], [0.5, 0.9, 0.1])], "epoch", "loss")
    svg(figure)
    (x1, y1), (x2, y2), (x3, y3) = places(figure)
    assert x1 < x2 < x3
    assert y2 < y1 < y3


def test_tenfold_steps_are_alike_on_a_logarithmic_axis() -> None:
    series = Series("a", [1, 10, 100], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4])
    (x1, _), (x2, _), (x3, _) = places(lines("x", [series], "labels", "accuracy", log_x=True))
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)


def test_a_file_needs_no_page_around_it() -> None:
    """The same lines, with a name space, a title and keys of its own, within the picture."""
    series = [Series("first", [1, 10], [0.1, 0.2]), Series("second", [1, 10], [0.3, 0.1])]
    file = lines_file("a < b", series, "labels", "accuracy", log_x=True)
    picture = svg(file)
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "first", "second", "labels", "accuracy"} <= set(texts)
    assert all(file.count(f'fill="{colour}"') >= 3 for colour in COLOURS[:2]), "points, and a key"
    _, _, width, height = (float(part) for part in picture.attrib["viewBox"].split())
    keys = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in picture.iter("{http://www.w3.org/2000/svg}circle")]
    assert all(0 < x < width and 0 < y < height for x, y in keys)
    assert places(file)[:4] == places(lines("a < b", series, "labels", "accuracy", log_x=True))


def test_text_is_escaped() -> None:
    figure = lines("a < b", [Series("<script>", [1, 2], [1, 1])], "&", "y")
    assert "<script>" not in figure
    svg(figure)


def test_odd_values_do_not_break_a_chart() -> None:
    svg(lines("one point", [Series("a", [1], [0.0])], "x", "y"))
    svg(histogram("all alike", {"a": np.ones(5)}, "score", threshold=1.0))
    svg(histogram("threshold beyond", {"a": np.arange(9.0), "b": np.arange(3.0)}, "score", threshold=50.0))
    svg(points("all alike", np.zeros((3, 2)), np.array([0, 1, 11]), [str(i) for i in range(12)]))
