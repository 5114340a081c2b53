import re

from training.report.html import STYLESHEET, page


def test_a_page_holds_its_stylesheet_and_refers_to_nothing() -> None:
    text = page("Cats & dogs", [("One", "<p>1</p>"), ("Empty", "")])
    assert STYLESHEET.read_text() in text
    assert "</" not in STYLESHEET.read_text(), "it would end the element that it stands in"
    assert not re.search(r"<link|<script|src=|href=|url\(|@import", text)
    assert re.findall(r"<h\d>(.*?)</h\d>", text) == ["Cats &amp; dogs", "One"]
