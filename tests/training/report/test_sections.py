import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(path: Path) -> tuple[str, list[str]]:
    text, parser = path.read_text(), Balanced()
    parser.feed(text)
    assert parser.open == []
    return text, parser.headings


def test_the_page_in_the_run_shows_everything_and_needs_no_network(trained: Path) -> None:
    text, headings = read(trained / "run/report.html")
    assert [heading for heading in headings if heading != "Labels most likely wrong"] == [
        "In short",
        "Learning curves",
        "Confusion",
        "Reconstructions",
        "Latent map",
        "Anomaly score",
        "Where it comes from",
    ]
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64,") > 20
    for sentence in (
        "are classified correctly",
        "are called anomalous, at a stated 5.00%",
        "threshold",
        "each class has its own",
        "SHA-256",
    ):
        assert sentence in text


def test_the_page_in_the_bundle_holds_no_picture(trained: Path) -> None:
    text, headings = read(trained / "models/drawn/1/report.html")
    assert "data:image" not in text
    assert headings == ["In short", "Learning curves", "Confusion", "Latent map", "Anomaly score", *headings[5:]]
    assert headings[5:] == ["Where it comes from"]
    assert str(trained) not in text
