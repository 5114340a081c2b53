import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from training.__main__ import main

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
        "Prediction sets",
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
    assert headings[:3] == ["In short", "Learning curves", "Confusion"]
    assert headings[3:] == ["Prediction sets", "Latent map", "Anomaly score", "Where it comes from"]
    assert str(trained) not in text


def test_the_page_of_a_run_for_inspection_shows_curves_and_what_was_judged_wrongly(inspected: Path) -> None:
    text, headings = read(inspected / "run/report.html")
    for heading in ("Defects", "Defects with the lowest scores", "Sound images with the highest scores"):
        assert heading in headings
    defects = text.partition("<h2>Defects</h2>")[2].partition("</section>")[0]
    for word in ("image AUROC", "AUPRO 30 %", "<td>all</td>", "<td>dot</td>", "<td>line</td>", "ROC", "precision"):
        assert word in defects
    wrong = text.partition("<h2>Defects with the lowest scores</h2>")[2].partition("</section>")[0]
    assert wrong.count("<figure>") == 8
    assert wrong.count("data:image/png;base64,") == 3 * 8, "picture, map and mask"
    assert "Images with defects are separated from sound ones with an AUROC of" in text


def test_the_picture_with_its_mask_is_red_where_the_mask_is(inspected: Path) -> None:
    text = (inspected / "run/report.html").read_text()
    section = text.partition("<h2>Defects with the lowest scores</h2>")[2].partition("</section>")[0]
    for figure in section.split("<figure>")[1:]:
        [name] = re.findall(r"<code>(.+?)\.png</code>", figure)
        pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', figure)]
        over = np.asarray(pictures[2].convert("RGB")).astype(int)
        mask = np.asarray(Image.open(inspected / f"set/ground_truth/{name}_mask.png")) > 0
        assert np.array_equal(over[..., 0] > over[..., 1] + 100, mask)


def test_the_page_in_the_bundle_has_the_numbers_and_no_picture_of_defects(inspected: Path) -> None:
    text, headings = read(inspected / "models/surfaces/1/report.html")
    assert "data:image" not in text
    assert "Defects" in headings
    assert "Defects with the lowest scores" not in headings


def test_without_masks_the_page_has_maps_all_the_same(inspected: Path, tmp_path: Path) -> None:
    shutil.copytree(inspected, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/set/ground_truth")
    run = tmp_path / "copy/run"
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["source"] = recipe["target"] = str(tmp_path / "copy/set")
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert main(["report", str(run)]) == 0
    text, _ = read(run / "report.html")
    wrong = text.partition("<h2>Defects with the lowest scores</h2>")[2].partition("</section>")[0]
    assert wrong.count("data:image/png;base64,") == 2 * 8, "picture and map"
    assert "AUPRO" not in text.partition("<h2>Defects</h2>")[2].partition("</section>")[0]
