"""The pages, used as people use them: in a real browser, on a phone and on a desk, in light and dark."""

import base64
import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from PIL import ExifTags, Image, ImageDraw
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright
from support import ROOT, draw_folder, save_tiny, serving, spec, tiled_spec, tiny, with_sets

from app.bundle.drawings import GARMENTS, garment, samples
from app.bundle.encode import png
from app.bundle.manifest import Distance, Manifest
from app.bundle.regions import PEAKS
from app.bundle.scoring import thumbnail_size
from app.bundle.store import assemble, save
from app.settings import Settings
from training.__main__ import main as training
from training.data.imageset import ImageSet
from training.score import examples

SCREENSHOTS = ROOT / "screenshots"  # ignored; looked at by people
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 900}}
DRAWN = {name: png(image) for name, image in samples().items()}
REFUSED = "Failed to load resource"  # how a browser's console tells of every answer that is not a success


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        fake_camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *fake_camera])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What ships, the seed in two versions, and a model that neither classifies nor judges."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models", models, dirs_exist_ok=True)
    shutil.copytree(models / "fashion-mnist-seed/1", models / "fashion-mnist-seed/2")
    save_tiny(models, "plain", head=False, anomaly=False, decoder=False)
    with serving(Settings(models=models, default_model="fashion-mnist")) as client:
        yield str(client.base_url).rstrip("/")


class Visit:
    """One person's browser: keeps what its console complains of, and every address that it asks."""

    def __init__(self, browser: Browser, size: str, scheme: str = "light", **options: Any) -> None:
        self.size, self.name = size, f"{size}-{scheme}"
        on_phone = size == "phone"
        self.context: BrowserContext = browser.new_context(
            viewport=SIZES[size], color_scheme=scheme, has_touch=on_phone, is_mobile=on_phone, **options
        )
        self.complaints: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda answer_text: self._heard(answer_text.type, answer_text.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def open(self, address: str) -> None:
        self.page.goto(address)
        expect(self.page.locator("#what")).not_to_contain_text("Reading")

    def sample(self, sentence: str) -> None:
        self.page.get_by_role("button", name=f"Sample: {sentence}").click()

    @property
    def label(self) -> Locator:
        return self.page.get_by_test_id("top-label")

    def kept(self, what: str) -> None:
        """A screenshot of all of the page, which must not be wider than the screen."""
        self.page.wait_for_timeout(250)  # bars are still growing
        assert not self.page.evaluate("document.documentElement.scrollWidth > innerWidth"), "scrolls sideways"
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{what}-{self.name}.png", full_page=True)


Visitor = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visitor]:
    """Whoever visits leaves without a complaint in the console, but for those that a test expects."""
    visits: list[Visit] = []

    def begin(size: str = "desk", scheme: str = "light", **options: Any) -> Visit:
        visits.append(Visit(browser, size, scheme, **options))
        return visits[-1]

    yield begin
    for each in visits:
        each.context.close()
        assert each.complaints == []


def hand_over(page: Page, event: str, files: dict[str, bytes]) -> None:
    """Drop files on the page, or paste them."""
    page.evaluate(
        """([event, files]) => {
            const transfer = new DataTransfer();
            for (const [name, base64] of files) {
                const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/png" }));
            }
            document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
                : new DragEvent(event, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        [event, [[name, base64.b64encode(data).decode()] for name, data in files.items()]],
    )


def predicted(address: str, data: bytes, model: str = "fashion-mnist") -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/predict?model={model}", files={"image": data}).raise_for_status()
    result: dict[str, Any] = answer.json()["results"][0]
    return result


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_dropped_image_is_answered_in_full(visit: Visitor, address: str, size: str, scheme: str) -> None:
    v = visit(size, scheme)
    v.open(address)
    v.kept("empty")
    hand_over(v.page, "dragenter", {"bag.png": DRAWN["bag"]})
    expect(v.page.locator("#over")).to_be_visible()
    hand_over(v.page, "drop", {"bag.png": DRAWN["bag"]})
    expect(v.page.locator("#over")).to_be_hidden()
    truth = predicted(address, DRAWN["bag"])
    expect(v.label).to_have_text(truth["label"])
    answer = v.page.locator("#answer")
    bars = answer.locator(".bars li")
    expect(bars).to_have_count(10)
    expect(bars.first).to_contain_text(f"{100 * truth['confidence']:.1f} % sure")
    for sentence in ("Your image", "Reconstruction", "Why", "Reconstruction error"):
        expect(answer.get_by_text(sentence, exact=True)).to_be_visible()
    for map_name in ("why", "odd"):
        painted = answer.locator(f"[data-figure={map_name}] canvas")
        expect(painted).to_have_js_property("width", 28)
        alphas = painted.evaluate(
            "(c) => [...c.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 == 3)"
        )
        assert max(alphas) > 200 > min(alphas), "a map has strong places and faint ones"
    anomaly = answer.locator(".anomaly")
    expect(anomaly).to_contain_text("Like what this model knows")
    expect(anomaly).to_contain_text(f"The score is {truth['score']:.2f}".replace("-", "−"))
    as_high = round(truth["p_value"] * 5001) - 1
    expect(anomaly).to_contain_text(
        f"{round(100 * truth['p_value'])} of 100" if truth["p_value"] >= 0.1 else f"{as_high} of 5,000"
    )
    manifest = json.loads((ROOT / "models/fashion-mnist/1/manifest.json").read_text())
    summands = re.findall(r"\(([−\d.]+)\)", anomaly.locator("p").inner_text())
    assert len(summands) == len(manifest["anomaly"]["distances"])
    assert sum(float(part.replace("−", "-")) for part in summands) == pytest.approx(truth["score"], abs=0.02)
    expect(answer.locator("[data-figure=odd]")).to_contain_text("; not part of the score")
    expect(answer.locator(".strip")).to_have_js_property("width", len(truth["embedding"]))
    assert answer.locator(".map circle").count() == 500 + 2
    expect(answer.locator(".keys .own")).to_have_text(truth["label"])
    for part in ("queue", "decode", "run", "total"):
        expect(answer.locator(".times")).to_contain_text(re.compile(rf"{part}\s*[\d.]+ ms"))
    expect(v.page.get_by_role("status")).to_contain_text(f"{truth['label']}, ")
    v.kept("answer")


def save_with_thresholds(models: Path, thresholds: dict[str, float]) -> None:
    """The bundle that ships, as if its labels were independent; they have a threshold that none reaches, or this."""
    folder = ROOT / "models/fashion-mnist/1"
    manifest = Manifest.parse((folder / "manifest.json").read_bytes(), "fashion-mnist/1")
    assert manifest.classifier is not None
    levels = tuple(thresholds.get(label, 1 - 1e-12) for label in manifest.classifier.labels)
    fields = {name: value for name, value in manifest if name not in ("schema_version", "golden", "files", "seal")}
    fields["classifier"] = manifest.classifier.model_copy(update={"thresholds": levels})
    files = {name: (folder / name).read_bytes() for name in manifest.files if name != manifest.golden.file}
    save(models, "several", fields, files, None, manifest.golden.outputs)


def test_several_labels_are_shown_at_once(visit: Visitor, tmp_path: Path) -> None:
    save_with_thresholds(tmp_path, {"Bag": 0.5, "Shirt": 1e-9})
    v = visit()
    with serving(Settings(models=tmp_path)) as client:
        address = str(client.base_url).rstrip("/")
        v.open(address)
        expect(v.page.locator("#what")).to_contain_text("knows 10 labels, of which an image may have several")
        v.sample("a bag")
        truth = predicted(address, DRAWN["bag"], "several")
        assert [each["label"] for each in truth["labels"]] == ["Bag", "Shirt"]
        bars = v.page.locator(".bars li")
        expect(bars.filter(has_text="likely").locator(".label")).to_have_text(["Bag", "Shirt"])
        expect(v.page.locator(".bars li.chosen .label")).to_have_text(["Bag", "Shirt"])
        assert bars.locator(".label").all_inner_texts()[:2] == ["Bag", "Shirt"], "what it has comes first"
        expect(v.page.get_by_role("status")).to_contain_text("Bag, Shirt, ")
        expect(v.page.locator("[data-figure=why]")).to_contain_text("for Bag")
        v.kept("several-labels")
        hand_over(v.page, "drop", {"again.png": DRAWN["bag"], "trouser.png": DRAWN["trouser"]})
        expect(v.page.locator("#grid b").filter(has_text="Bag, Shirt")).not_to_have_count(0)
        v.page.goto(f"{address}/models/several")
        expect(v.page.locator("#facts")).to_contain_text("50 % for Bag")
        expect(v.page.locator("#facts")).to_contain_text("before the sigmoid of each label")


def test_an_image_may_have_none_of_several_labels(visit: Visitor, tmp_path: Path) -> None:
    save_with_thresholds(tmp_path, {})
    v = visit()
    with serving(Settings(models=tmp_path)) as client:
        v.open(str(client.base_url))
        v.sample("a bag")
        expect(v.page.get_by_role("status")).to_contain_text("None of its labels, ")
        expect(v.page.locator(".bars li")).to_have_count(10)
        expect(v.page.locator(".bars li.chosen")).to_have_count(0)
        expect(v.page.locator("[data-figure=why]")).to_be_hidden()


def save_with_every_distance(models: Path) -> tuple[Distance, ...]:
    """The bundle that ships, its score a sum of every distance that it can have: it remembers no patches."""
    folder = ROOT / "models/fashion-mnist/1"
    manifest = Manifest.parse((folder / "manifest.json").read_bytes(), "fashion-mnist/1")
    assert manifest.anomaly is not None
    assert manifest.reference is not None
    measures, takes = (get_args(Distance.model_fields[name].annotation) for name in ("measure", "takes"))
    distances = tuple(
        Distance(measure=measure, takes=taken, mean=1.0 + index, std=2.0)
        for index, (measure, taken) in enumerate((m, t) for m in measures for t in takes)
        if (measure == "reconstruction") == (taken == "pixels") and "patches" not in (measure, taken)
    )
    sizes = {tensor.name: tensor.shape[-1] for tensor in manifest.graphs.encoder.outputs}
    sizes["thumbnail"] = thumbnail_size(*manifest.input.shape)
    rng, arrays = np.random.default_rng(0), {}
    for name, size in sizes.items():
        space = {
            "mean": rng.normal(size=size),
            "weight": np.ones(size),
            "basis": np.eye(size, 4),
            "spread": np.ones(4),
            "references": rng.normal(size=(9, 4)),
            "reach": rng.uniform(1, 2, 9),
        }
        arrays |= {f"{name}.{array}": values for array, values in space.items()}
    with np.load(folder / manifest.reference) as shipped:
        arrays = {**shipped, **arrays}
    reference = io.BytesIO()
    np.savez(reference, **arrays)
    files = {name: (folder / name).read_bytes() for name in manifest.files if name != manifest.golden.file}
    fields = {name: value for name, value in manifest if name not in ("schema_version", "golden", "files", "seal")}
    fields["anomaly"] = manifest.anomaly.model_copy(update={"distances": distances})
    save(models, "every", fields, files | {manifest.reference: reference.getvalue()}, None, manifest.golden.outputs)
    return distances


def test_every_distance_that_a_score_may_have_is_told_in_words(visit: Visitor, tmp_path: Path) -> None:
    distances = save_with_every_distance(tmp_path)
    v = visit()
    with serving(Settings(models=tmp_path)) as client:
        v.open(str(client.base_url))
        v.sample("a bag")
        words = v.page.locator(".anomaly p")
        expect(words).to_contain_text("It adds up, in standard deviations")
        truth = predicted(str(client.base_url).rstrip("/"), DRAWN["bag"], "every")
        summands = re.findall(
            r"([^,(]+(?:, relative [^,(]+)?) \(([−\d.]+)\)", words.inner_text().partition("deviations,")[2]
        )
        assert len(summands) == len(distances) == len({sentence for sentence, _ in summands}), summands
        for distance, (sentence, number) in zip(distances, summands, strict=True):
            assert distance.name not in sentence, f"app/web/answer.js has no words for {distance.name}"
            expected = (truth["distances"][distance.name] - distance.mean) / distance.std
            assert float(number.replace("−", "-")) == pytest.approx(expected, abs=0.006), sentence
        v.kept("every-distance")


def save_inspector(models: Path, resize: str = "stretch", sound: int = 199) -> None:
    """Its anomaly map shows what is bright; the map's peaks are known of so many sound images."""
    fields, files = tiny(spec(20, 40, resize=resize, filter="box"), head=False, decoder=False, patches=True)
    with np.load(io.BytesIO(files["reference.npz"])) as reference:
        arrays = {**reference, PEAKS: np.linspace(0, 0.5, sound)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    save(models, "inspector", fields, files | {"reference.npz": buffer.getvalue()})


def draw_defects() -> bytes:
    """A dark surface of 160 × 100 pixels, with a white spot and a grey one: the map is 0.75 and 0.3 there.

    As a camera held sideways takes it.
    """
    surface = Image.new("L", (160, 100))
    pen = ImageDraw.Draw(surface)
    pen.rectangle((100, 30, 119, 49), fill=255)
    pen.rectangle((20, 50, 39, 69), fill=140)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    surface.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=100, exif=exif)
    return buffer.getvalue()


def inspected(address: str, data: bytes, query: str) -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/anomaly?regions=true{query}", files={"image": data}).raise_for_status()
    result: dict[str, Any] = answer.json()["results"][0]
    return result


def edges(locator: Locator) -> list[float]:
    """Left, top, right, bottom on the page."""
    box = locator.bounding_box()
    assert box is not None
    return [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]


def white_on_page(frame: Locator) -> list[float]:
    """Left, top, right, bottom of what is white in the frame, as it is painted."""
    frame.page.evaluate("document.body.style.background = 'black'")  # seen at the frame's round corners
    painted = Image.open(io.BytesIO(frame.screenshot())).convert("L")
    white = Image.fromarray(np.asarray(painted) > 200).getbbox()
    assert white is not None
    left, top, _, _ = edges(frame)
    return [white[0] + left, white[1] + top, white[2] + left, white[3] + top]


def test_a_tall_picture_in_tiles_keeps_its_shape_under_its_map_and_boxes(visit: Visitor, tmp_path: Path) -> None:
    save(tmp_path, "tiles", *tiny(tiled_spec()))
    surface = Image.new("L", (100, 300))
    ImageDraw.Draw(surface).rectangle((32, 200, 63, 231), fill=255)
    v = visit("desk", "light", reduced_motion="reduce")
    with serving(Settings(models=tmp_path)) as client:
        v.open(str(client.base_url).rstrip("/"))
        hand_over(v.page, "drop", {"tall.png": png(surface)})
        box = v.page.locator(".boxes button")
        expect(box).to_have_count(1)
        frame = v.page.locator("[data-figure=odd] .frame")
        left, top, right, bottom = edges(frame)
        assert (bottom - top) / (right - left) == pytest.approx(3, rel=0.02)
        scale = (right - left) / 100
        expected = [left + 32 * scale, top + 200 * scale, left + 64 * scale, top + 232 * scale]
        assert edges(box) == pytest.approx(expected, abs=9 * scale)
        v.kept("tiles")


@pytest.mark.parametrize(
    ("resize", "size", "scheme"), [("stretch", "desk", "light"), ("pad", "phone", "dark"), ("crop", "desk", "dark")]
)
def test_odd_regions_lie_over_the_picture_and_follow_the_false_alarm_rate(
    visit: Visitor, tmp_path: Path, resize: str, size: str, scheme: str
) -> None:
    save_inspector(tmp_path, resize)
    data = draw_defects()
    v = visit(size, scheme, reduced_motion="reduce")
    with serving(Settings(models=tmp_path)) as client:
        address = str(client.base_url).rstrip("/")
        v.open(address)
        hand_over(v.page, "drop", {"surface.jpg": data})
        boxes, listed = v.page.locator(".boxes button"), v.page.locator("[data-part=regions] li")
        expect(boxes).to_have_count(1)
        truth = inspected(address, data, "")
        assert truth["regions"][0]["box"] == [100, 30, 120, 50]
        expect(listed).to_have_text(["x 100 to 120, y 30 to 50 px, p = 0.005"])
        expect(v.page.locator("[data-figure=odd]")).to_contain_text("where surface.jpg is least like sound ones")
        expect(v.page.locator(".anomaly p")).to_contain_text("how unlike those of normal ones its oddest patches are")
        expect(v.page.get_by_role("status")).to_contain_text("Unlike what this model knows. 1 odd region")
        boxes.first.focus()
        expect(boxes.first).to_have_accessible_name("Region 1: x 100 to 120, y 30 to 50 px, p = 0.005")
        expect(v.page.get_by_text("1: p = 0.005", exact=True)).to_be_visible()

        slider = v.page.get_by_role("slider", name="False alarms on")
        expect(slider).to_have_attribute("aria-valuetext", "5 % of normal images (the model’s own)")
        place = edges(slider)
        slider.focus()
        v.page.keyboard.press("End")
        expect(boxes).to_have_count(2)
        truth = inspected(address, data, "&false_alarm_rate=0.5")
        assert truth["regions"][1]["box"] == [20, 50, 40, 70]
        expect(listed.nth(1)).to_contain_text("x 20 to 40, y 50 to 70 px")
        threshold = f"{truth['threshold']:.2f}".replace("-", "−")
        expect(v.page.locator(".anomaly p")).to_contain_text(
            f"above {threshold} an image is called anomalous, as at most 50 %"
        )
        expect(v.page.locator("[data-part=curl] pre").first).to_contain_text("&regions=true&false_alarm_rate=0.5")
        expect(slider).to_be_focused()
        assert edges(slider) == place
        without_barriers(v.page)
        v.kept(f"regions-{resize}")

        v.page.get_by_role("slider", name="Strength of the map").fill("0")
        found = edges(boxes.first)
        v.page.locator(".boxes").evaluate("(layer) => { layer.hidden = true; }")
        assert found == pytest.approx(white_on_page(v.page.locator("[data-figure=odd] .frame")), abs=2)

        slider.press("Home")
        expect(slider).to_have_attribute("aria-valuetext", "0.5 % of normal images")
        expect(boxes).to_have_count(1)


@pytest.mark.parametrize(("size", "scheme"), [("phone", "light"), ("desk", "dark")])
def test_the_most_similar_images_stand_beside_the_answer(
    visit: Visitor, tmp_path: Path, size: str, scheme: str
) -> None:
    fields, files = tiny(spec(28, 28), index=True)
    pixels = np.stack([np.asarray(garment(kind).resize((28, 28)))[..., None] for kind in GARMENTS])
    images = ImageSet(pixels, np.arange(len(GARMENTS)), tuple(GARMENTS), tuple(f"{kind}.png" for kind in GARMENTS))
    files |= examples.index(assemble("tiny", fields, files), images, thumbnails=True)
    save(tmp_path, "tiny", fields, files)
    save_tiny(tmp_path, "without", shape=spec(28, 28))
    v = visit(size, scheme)
    with serving(Settings(models=tmp_path, default_model="tiny")) as client:
        v.open(str(client.base_url))
        hand_over(v.page, "drop", {"bag.png": DRAWN["bag"]})
        found = v.page.locator("[data-part=similar] li")
        expect(found).to_have_count(len(GARMENTS))
        expect(found.first).to_contain_text("bag")
        expect(found.first).to_have_attribute("title", "bag.png")
        assert found.first.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 28
        expect(v.page.locator("[data-part=similar] p")).to_contain_text("the nearest first")
        without_barriers(v.page)
        v.kept("similar")
        v.page.get_by_label("Model").select_option("without")
        expect(v.page.locator("[data-part=similar]")).to_be_hidden()


def test_a_false_alarm_rate_that_is_refused_leaves_the_last_answer(visit: Visitor, tmp_path: Path) -> None:
    save_inspector(tmp_path, sound=99)  # fewer than the score was calibrated on
    v = visit()
    with serving(Settings(models=tmp_path)) as client:
        v.open(str(client.base_url))
        hand_over(v.page, "drop", {"surface.jpg": draw_defects()})
        slider, boxes = v.page.get_by_role("slider", name="False alarms on"), v.page.locator(".boxes button")
        expect(boxes).to_have_count(1)
        slider.press("Home")
        expect(v.page.locator("#answer .problem")).to_contain_text("at least 199 are needed")
        expect(boxes).to_be_visible()
        expect(v.page.locator(".anomaly p")).to_contain_text("as at most 5 % of normal ones are")
        expect(v.page.locator("[data-part=curl] pre").first).not_to_contain_text("false_alarm_rate")
        slider.press("End")
        expect(boxes).to_have_count(2)
        expect(v.page.locator("#answer .problem")).to_be_hidden()
    assert [text[: len(REFUSED)] for text in v.complaints] == [REFUSED]
    v.complaints.clear()


def test_a_distance_that_the_page_does_not_know_is_told_by_its_name(visit: Visitor, address: str) -> None:
    """As a page that a browser has kept meets a service that came later."""
    v = visit()

    def renamed(route: Route) -> None:
        text = route.fetch().text()
        route.fulfill(body=text.replace("neighbours", "nearness").replace("thumbnail", "outline"))

    v.page.route(re.compile(r"/v1/(models/fashion-mnist@1$|predict\?)"), renamed)
    v.open(address)
    v.sample("a bag")
    words = v.page.locator(".anomaly p")
    expect(words).to_contain_text(re.compile(r"embedding\.nearness \([−\d.]+\).* outline\.nearness \([−\d.]+\)"))
    expect(v.label).to_have_text("Bag")


def test_a_pasted_image_is_answered(visit: Visitor, address: str) -> None:
    v = visit()
    v.open(address)
    hand_over(v.page, "paste", {"image.png": DRAWN["trouser"]})
    expect(v.label).to_have_text("Trouser")


@pytest.mark.parametrize("size", SIZES)
def test_several_images_make_a_grid_that_can_be_sorted(visit: Visitor, address: str, size: str, tmp_path: Path) -> None:
    v = visit(size)
    v.open(address)
    for name, data in DRAWN.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    (tmp_path / "broken.png").write_bytes(DRAWN["bag"][:90])
    (tmp_path / "letter.png").write_text("dear reader")
    v.page.locator("#files").set_input_files(sorted(tmp_path.iterdir()))
    cards = v.page.locator("#grid button")
    expect(v.page.locator("#tray-title")).to_have_text("7 images")
    expect(cards).to_have_count(7)
    expect(cards.first).to_have_accessible_name(re.compile(r"^bag\.png: Bag"))

    v.page.get_by_label("Sort").select_option("anomaly")
    scores = {f"{name}.png": predicted(address, data)["score"] for name, data in DRAWN.items()}
    ranked = sorted(scores, key=lambda name: -scores[name])
    for card, name in zip(cards.all(), ranked, strict=False):
        expect(card).to_have_accessible_name(re.compile(rf"^{re.escape(name)}: "))
    v.page.get_by_role("button", name="rings.png").click()
    expect(v.page.locator(".anomaly")).to_contain_text("Unlike what this model knows")
    v.kept("grid")

    v.page.get_by_role("button", name="letter.png: Not read").click()
    expect(v.page.locator("#answer .problem")).to_contain_text("This is no image that Graft can read.")
    v.page.get_by_role("button", name="broken.png: Not read").click()
    expect(v.page.locator("#answer .problem")).to_contain_text("This image is damaged.")
    v.kept("broken")
    v.page.get_by_role("button", name="Clear all").click()
    expect(v.page.locator("#answer")).to_be_hidden()
    assert [text[: len(REFUSED)] for text in v.complaints] == [REFUSED] * 2, "the two that were refused"
    v.complaints.clear()


def test_a_photograph_is_taken_in_the_page(visit: Visitor, address: str) -> None:
    v = visit(permissions=["camera"])
    v.open(address)
    v.page.get_by_role("button", name="Photograph").click()
    v.page.get_by_role("button", name="Take the picture").click()
    expect(v.label).to_be_visible()
    expect(v.page.locator("[data-figure=input]")).to_contain_text("photo.jpg")
    expect(v.page.locator("#camera")).to_be_hidden()


def test_a_phone_takes_it_with_its_own_camera(visit: Visitor, address: str) -> None:
    v = visit("phone")
    v.open(address)
    v.page.evaluate("matchMedia = () => ({ matches: true })")  # a headless browser has no coarse pointer
    with v.page.expect_file_chooser() as chooser:
        v.page.get_by_role("button", name="Photograph").click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files({"name": "IMG_1.png", "mimeType": "image/png", "buffer": DRAWN["bag"]})
    expect(v.label).to_have_text("Bag")


@pytest.mark.parametrize("size", SIZES)
def test_a_drawing_is_answered_as_it_grows(visit: Visitor, address: str, size: str) -> None:
    v = visit(size)
    v.open(address)
    v.page.get_by_role("button", name="Draw").click()
    canvas = v.page.locator("#pad canvas")

    def stroke(*points: tuple[float, float]) -> None:
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        v.page.mouse.move(*places[0])
        v.page.mouse.down()
        for place in places[1:]:
            v.page.mouse.move(*place, steps=5)
        v.page.mouse.up()

    v.page.get_by_label("Brush").fill("60")
    stroke((0.35, 0.1), (0.3, 0.95))
    expect(v.label).to_be_visible()
    stroke((0.65, 0.1), (0.7, 0.95))
    stroke((0.4, 0.08), (0.6, 0.08))
    drawn = canvas.evaluate("(c) => c.toDataURL()")
    truth = predicted(address, base64.b64decode(drawn.partition(",")[2]))
    expect(v.page.locator(".bars li").first).to_contain_text(f"{100 * truth['confidence']:.1f} % sure")
    expect(v.label).to_have_text(truth["label"])
    expect(v.page.locator("#tray")).to_be_hidden()  # a drawing is one image, however often it changes
    v.kept("drawing")
    v.page.get_by_role("button", name="Undo").click()
    assert canvas.evaluate("(c) => c.toDataURL()") != drawn
    v.page.get_by_role("button", name="Clear", exact=True).click()
    assert set(canvas.evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")) == {0, 255}


def test_another_model_or_version_answers_at_once(visit: Visitor, address: str) -> None:
    v = visit()
    v.open(address)
    v.sample("a sneaker")
    expect(v.label).to_have_text("Sneaker")
    v.page.get_by_label("Model").select_option("fashion-mnist-seed")
    truth = predicted(address, DRAWN["sneaker"], "fashion-mnist-seed@2")
    expect(v.page.locator(".bars li").first).to_contain_text(f"{100 * truth['confidence']:.1f} % sure")
    expect(v.page.locator("[data-figure=why]")).to_be_hidden()  # it cannot explain
    expect(v.page.locator("[data-figure=odd]")).to_contain_text("; part of the score")
    expect(v.page).to_have_url(re.compile(r"model=fashion-mnist-seed@2$"))
    v.page.get_by_label("Version").select_option("1")
    expect(v.page.locator("[data-part=curl] pre").first).to_contain_text("fashion-mnist-seed@1")

    v.page.get_by_label("Model").select_option("plain")
    expect(v.page.locator(".strip")).to_have_js_property("width", 5)
    for gone in (".bars", ".anomaly", "[data-figure=drawn]", "[data-part=map] svg", "#explorer"):
        expect(v.page.locator(gone)).to_be_hidden()
    expect(v.page.locator("[data-part=map]")).to_contain_text("This bundle has no map")
    v.kept("plain")
    v.open(f"{address}/?model=fashion-mnist-seed@1")
    expect(v.page.get_by_label("Version")).to_have_value("1")


def test_the_curl_that_is_copied_gives_the_same_answer(visit: Visitor, address: str, tmp_path: Path) -> None:
    name = 'it\'s; a "shoe", 1.png'
    (tmp_path / name).write_bytes(DRAWN["sneaker"])
    v = visit(permissions=["clipboard-read", "clipboard-write"])
    v.open(address)
    v.page.locator("#files").set_input_files(tmp_path / name)
    expect(v.label).to_have_text("Sneaker")
    v.page.get_by_role("button", name="Copy").click()
    expect(v.page.get_by_role("button", name="Copied")).to_be_visible()
    command = v.page.evaluate("navigator.clipboard.readText()")
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    shown = v.page.locator("[data-part=curl] details code").text_content()
    assert shown is not None
    assert json.loads(done.stdout)["results"][0]["probabilities"] == json.loads(shown)["results"][0]["probabilities"]


PIXELS = """(image) => {
    const size = { width: image.naturalWidth, height: image.naturalHeight };
    const canvas = Object.assign(document.createElement("canvas"), size);
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""


@pytest.mark.parametrize("size", SIZES)
def test_what_lies_between_two_images_is_drawn_as_the_slider_moves(visit: Visitor, address: str, size: str) -> None:
    v = visit(size)
    v.open(address)
    v.page.get_by_role("button", name="Try it with two samples").click()
    between = v.page.get_by_role("img", name="Drawn from an embedding between both")
    slider = v.page.get_by_role("slider", name="How far")
    expect(between).to_be_visible()
    halfway = between.evaluate(PIXELS)
    slider.focus()
    v.page.keyboard.press("Home")
    expect(between).to_have_attribute("alt", re.compile("100 % sneaker.png"))
    expect(v.page.locator("#explorer output")).to_have_text("100 % sneaker.png, 0 % t-shirt.png")
    v.page.get_by_role("button", name=re.compile("^sneaker")).click()
    reconstruction = v.page.get_by_role("img", name="The image, reconstructed from its embedding")
    expect(reconstruction).to_be_visible()
    assert between.evaluate(PIXELS) == reconstruction.evaluate(PIXELS), "at its end lies the image's own reconstruction"
    slider.press("End")
    expect(between).to_have_attribute("alt", re.compile("100 % t-shirt.png"))
    assert between.evaluate(PIXELS) != halfway
    v.sample("a bag")
    expect(v.page.get_by_role("group", name="To").get_by_role("radio")).to_have_count(3)
    v.page.get_by_role("group", name="To").get_by_role("radio", name="bag.png").check(force=True)
    expect(v.page.locator("#explorer output")).to_contain_text("bag.png")
    v.page.locator("#explorer").scroll_into_view_if_needed()
    v.kept("explorer")


FORGED = """async (address) => {
    const post = (options) => fetch(address, { method: "POST", mode: "no-cors", ...options });
    await post({});
    await post({ body: "{}" });
    await post({ body: new Blob(["{}"]) });
    await post({ body: new URLSearchParams() });
    await post({ referrerPolicy: "no-referrer" });
    navigator.sendBeacon(address, "{}");
    const sent = new Promise((sent) => document.querySelector("iframe").addEventListener("load", sent));
    const form = Object.assign(document.querySelector("form"), { action: address });
    form.submit();
    await sent;
}"""
ASKED = """async (address) => {
    const headers = { "Content-Type": "application/json" };
    return (await fetch(address, { method: "POST", body: "{}", headers })).status;
}"""
FORGERY = "<form method=post enctype=text/plain target=frame><input name='{\"a' value='\":1}'></form>"


def test_a_page_of_another_origin_cannot_unload_a_model(visit: Visitor, models: Path, tmp_path: Path) -> None:
    """Whichever way a browser lets it send a POST; the service's own page can."""
    v = visit()
    elsewhere, html = FastAPI(), f"<title>evil</title>{FORGERY}<iframe name=frame></iframe>"
    elsewhere.add_api_route("/", lambda: HTMLResponse(html))
    settings = Settings(models=models, model_control="explicit")
    with serving(settings) as service, serving(settings, elsewhere) as evil:
        own = str(service.base_url).rstrip("/")
        address = f"{own}/v2/repository/models/tiny/unload"
        seen: list[tuple[str, int]] = []
        v.page.on("response", lambda answer: seen.append((answer.url, answer.status)))
        v.page.goto(str(evil.base_url))
        v.page.evaluate(FORGED, address)
        assert seen.count((address, 403)) >= 6, seen
        assert {status for url, status in seen if url == address} == {403}
        assert httpx.get(f"{own}/v2/models/tiny/ready").status_code == 200
        v.page.goto(own)
        assert v.page.evaluate(ASKED, address) == 200
        assert httpx.get(f"{own}/v2/models/tiny/ready").status_code == 404
    assert {text[: len(REFUSED)] for text in v.complaints} == {REFUSED}
    v.complaints.clear()


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(visit: Visitor, models: Path) -> None:
    settings = Settings(models=models, api_keys="сезам, another", metrics_key="numbers")
    with serving(settings) as client:
        v = visit()
        v.page.goto(str(client.base_url))
        key = v.page.get_by_role("textbox", name="Key")
        for wrong in ("thief", "ключ"):
            key.fill(wrong)
            v.page.keyboard.press("Enter")
            expect(v.page.get_by_text("not one of its keys")).to_be_visible()
        v.kept("key")
        key.fill("сезам")
        v.page.keyboard.press("Enter")
        expect(v.page.get_by_label("Model")).to_have_value("tiny")
        v.sample("a bag")
        expect(v.label).to_be_visible()
        command = v.page.locator("[data-part=curl] pre").first
        expect(command).to_contain_text("$GRAFT_KEY")
        expect(command).not_to_contain_text("сезам")
        assert v.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        v.page.get_by_role("link", name="About this model").click()
        expect(v.page.get_by_role("heading", name="tiny")).to_be_visible()
        expect(v.page.locator("#live-problem")).to_contain_text("the key to its metrics")
        v.page.get_by_role("link", name="API").click()
        expect(v.page.locator("details")).not_to_have_count(0)
        assert {text[: len(REFUSED)] for text in v.complaints} == {REFUSED}
        v.complaints.clear()


@pytest.mark.parametrize("path", ["/graft", "/graft/"])
def test_behind_a_path_of_its_own(visit: Visitor, models: Path, path: str) -> None:
    with serving(Settings(models=models, root_path="/graft")) as client:
        v = visit()
        v.open(str(client.base_url.join(path)))
        v.sample("a bag")
        expect(v.label).to_be_visible()
        v.page.get_by_role("link", name="About this model").click()
        expect(v.page.get_by_role("heading", name="tiny")).to_be_visible()
        v.page.get_by_role("link", name="API").click()
        expect(v.page.locator("details")).not_to_have_count(0)


def test_what_is_wrong_is_said_in_sentences(visit: Visitor, models: Path, tmp_path: Path) -> None:
    v = visit()
    with serving(Settings(models=tmp_path)) as client:
        v.page.goto(str(client.base_url))
        expect(v.page.get_by_role("alert")).to_contain_text("The service has no model to answer with. Put a bundle")
        v.kept("no-model")
    with contextlib.ExitStack() as service:
        client = service.enter_context(serving(Settings(models=models, max_pixels=100)))
        v.open(str(client.base_url))
        hand_over(v.page, "drop", {"bag.png": DRAWN["bag"]})
        expect(v.page.locator("#answer .problem")).to_contain_text("This image has too many pixels. ")
        service.close()
        hand_over(v.page, "drop", {"bag.png": DRAWN["bag"]})
        expect(v.page.locator("#answer .problem")).to_contain_text("The service does not answer. Is it still running?")
    assert {text[: len(REFUSED)] for text in v.complaints} == {REFUSED}
    v.complaints.clear()


def test_all_of_it_can_be_done_from_the_keyboard(visit: Visitor, address: str) -> None:
    v = visit()
    v.open(address)
    press = v.page.keyboard.press
    press("Tab")
    expect(v.page.get_by_role("link", name="Skip to the answer")).to_be_focused()
    for _ in range(20):
        press("Tab")
        if v.page.evaluate("document.activeElement.ariaLabel") == "Sample: trousers":
            break
    press("Enter")
    expect(v.label).to_have_text("Trouser")
    press("Tab")
    press("Enter")
    expect(v.label).to_have_text("Bag")
    v.page.get_by_role("link", name="Skip to the answer").focus()
    press("Enter")
    expect(v.page.locator("#answer")).to_be_focused()


def without_barriers(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desk", "light")])
def test_nobody_is_kept_out(visit: Visitor, address: str, size: str, scheme: str) -> None:
    """By what axe-core can find."""
    v = visit(size, scheme, reduced_motion="reduce")
    v.open(address)
    without_barriers(v.page)
    v.page.get_by_role("button", name="Draw").click()
    for sentence in ("a sneaker", "a bag", "rings"):
        v.sample(sentence)
    expect(v.page.locator(".anomaly.odd")).to_be_visible()
    expect(v.page.locator("#explorer output")).not_to_be_empty()
    without_barriers(v.page)
    v.page.goto(f"{address}/models/fashion-mnist")
    expect(v.page.locator("#report iframe")).to_be_visible()
    without_barriers(v.page)
    v.page.goto(f"{address}/docs")
    v.page.locator("summary").first.click()
    without_barriers(v.page)


def test_the_page_is_light_and_asks_nobody_else(visit: Visitor, address: str) -> None:
    v = visit()
    loaded: dict[str, int] = {}
    v.page.on("response", lambda answer: loaded.__setitem__(answer.url, len(answer.body())))
    v.open(address)
    v.page.wait_for_load_state("networkidle")
    assert all(url.startswith((address, "data:")) for url in loaded), loaded
    assert len(loaded) > 10
    assert sum(loaded.values()) < 110_000, loaded


@pytest.mark.parametrize(("size", "scheme"), [("phone", "light"), ("desk", "dark")])
def test_a_model_has_a_page(visit: Visitor, address: str, size: str, scheme: str) -> None:
    for _ in range(3):
        predicted(address, DRAWN["rings"])
    v = visit(size, scheme)
    v.page.goto(f"{address}/models/fashion-mnist")
    manifest = json.loads((ROOT / "models/fashion-mnist/1/manifest.json").read_text())
    [accuracy] = [metric["value"] for metric in manifest["metrics"] if metric["name"] == "accuracy"]
    expect(v.page.locator("#tiles")).to_contain_text(f"{100 * accuracy:.2f} %classified correctly")
    expect(v.page.locator("#facts")).to_contain_text(manifest["classifier"]["labels"][3])
    expect(v.page.locator("#numbers")).to_contain_text(re.compile(r"images\s*[1-9]"))
    expect(v.page.get_by_role("img", name=re.compile("Anomaly scores of [1-9]"))).to_be_visible()
    report = v.page.frame_locator("#report iframe")
    expect(report.get_by_role("heading", name="Confusion")).to_be_visible()
    v.page.locator("#card summary").click()
    expect(v.page.locator("#card")).to_contain_text("Nothing was chosen by the test images.")
    v.kept("model")
    v.page.get_by_role("combobox", name="Model").select_option("fashion-mnist-seed@2")
    expect(v.page.get_by_role("heading", name="fashion-mnist-seed", exact=True)).to_be_visible()
    v.page.get_by_role("link", name="Try it").click()
    expect(v.page.get_by_label("Model")).to_have_value("fashion-mnist-seed")


def test_a_model_page_says_whether_images_are_still_of_its_kind(visit: Visitor, address: str) -> None:
    v = visit()
    answer_text = v.page.locator("#drift")
    v.page.goto(f"{address}/models/plain")
    expect(answer_text).to_contain_text("This bundle cannot measure drift")
    v.page.goto(f"{address}/models/fashion-mnist-seed@1")
    expect(answer_text).to_contain_text("Not known yet: it needs 400 images")
    files = [("image", data) for data in DRAWN.values()] * 20
    for _ in range(4):
        httpx.post(f"{address}/v1/predict?model=fashion-mnist-seed@1", files=files).raise_for_status()
    found = httpx.get(f"{address}/v1/models/fashion-mnist-seed@1/drift").json()
    assert found["drifted"], "five drawings, over and over"
    expect(answer_text).to_contain_text(
        "do not look like those that were held out", timeout=10_000
    )  # it looks again by itself
    expect(v.page.locator("#moved")).to_contain_text(f"confidence{found['confidence_stability']:.2f}, much changed")
    v.kept("drift")


def test_a_prediction_set_is_told_in_words(visit: Visitor, tmp_path: Path) -> None:
    fields, files = tiny()
    save(tmp_path, "sure", fields, with_sets(files))
    v = visit()
    with serving(Settings(models=tmp_path)) as client:
        v.open(str(client.base_url))
        v.sample("a bag")
        words = v.page.locator("p.set")
        answer = client.post("/v1/predict?coverage=0.95", files={"image": DRAWN["bag"]}).json()["results"][0]
        for label in answer["set"]:
            expect(words).to_contain_text(label)
        promise = "such a set holds the truth for 95 of 100 images."
        kept = {
            (): "None of its labels is likely enough; "
            "of 100 images like those that it knows this happens to at most 5.",
            ("owl",): f"Nothing but owl is likely enough: {promise}",
            ("owl", "cat"): f"It cannot tell these apart: owl, cat: {promise}",
        }

        def with_labels(labels: tuple[str, ...]) -> Callable[[Route], None]:
            def changed(route: Route) -> None:
                told = route.fetch().json()
                told["results"][0] |= {"set": labels, "anomalous": False}
                route.fulfill(json=told)

            return changed

        for number, (labels, said) in enumerate(kept.items()):
            v.page.route(re.compile(r"/v1/predict"), with_labels(labels))
            hand_over(v.page, "drop", {f"{number}.png": DRAWN["trouser"]})
            expect(words).to_have_text(said)
        v.kept("sets")


@pytest.mark.parametrize("alarm", [False, True])
def test_the_martingale_is_drawn_and_its_alarm_takes_the_promises_back(
    visit: Visitor, address: str, alarm: bool
) -> None:
    v, capital = visit("phone" if alarm else "desk"), 1e60 if alarm else 0.3
    points = [[0, 1.0], [500, 0.4], [1000, capital]]
    known = {"estimated_accuracy": 0.9461, "estimated_accuracy_interval": [0.936, 0.956]}
    told = {"watched": 1000, "martingale": capital, "martingale_alarm_at": 100, "martingale_over_time": points}
    told |= {"alarm": alarm, **({"alarm_after": 700} if alarm else known)}
    v.page.route(
        re.compile(r"/drift$"),
        lambda route: route.fulfill(json={"images": 400, "window": 400, "drifted": False, **told}),
    )
    v.page.goto(f"{address}/models/fashion-mnist")
    martingale = v.page.locator("#martingale")
    expect(martingale.locator("polyline")).to_have_count(1)
    expect(martingale).to_contain_text("Alarm after 700 images: images have changed" if alarm else "No alarm in 1,000")
    if alarm:
        expect(martingale).to_contain_text("For these it holds no longer")
        expect(v.page.locator("#moved")).not_to_contain_text("accuracy")
    else:
        expect(v.page.locator("#moved")).to_contain_text("94.6 %, 93.6 % to 95.6 %")
    v.kept(f"martingale-{alarm}")


def test_a_model_from_a_few_images_is_at_home_in_the_pages(visit: Visitor, tmp_path: Path) -> None:
    """Its classes are named by numbers, which a browser would sort."""
    numbers = {"t-shirt": "9", "trouser": "7", "sneaker": "10", "bag": "1"}
    for kind in (drawn := draw_folder(tmp_path / "drawn", 5, seed=0)).iterdir():
        kind.rename(drawn / numbers[kind.name])
    base, models = ROOT / "models/fashion-mnist/1", tmp_path / "models"
    assert training(["graft", str(drawn), "--base", str(base), "--models", str(models)]) == 0
    v = visit()
    with serving(Settings(models=models)) as client:
        v.open(str(client.base_url))
        for kind, number in numbers.items():
            hand_over(v.page, "drop", {f"{kind}.png": DRAWN[kind]})
            expect(v.label).to_have_text(number)
        assert v.page.locator("#answer .map circle").count() == 20 + 2
        v.kept("few-shots")
        v.page.goto(f"{str(client.base_url).rstrip('/')}/models/drawn")
        expect(v.page.locator("#tiles")).to_contain_text("100.00 %of its few images classified correctly")
        expect(v.page.locator("#drift")).to_contain_text("or from too few images")


def test_a_report_may_look_as_it_likes_and_do_nothing(visit: Visitor, tmp_path: Path) -> None:
    fields, files = tiny()
    evil = "parent.document.title = 'taken'"
    files["report.html"] = (
        f"<h2>A report</h2><script>{evil}</script><img src=x onerror=\"{evil}\"><img src='https://evil.example/a.png'>"
    ).encode()
    save(tmp_path, "sly", fields, files)
    with serving(Settings(models=tmp_path)) as client:
        v = visit()
        failed: dict[str, str | None] = {}
        v.page.on("requestfailed", lambda request: failed.__setitem__(request.url, request.failure))
        for page in ("/models/sly", "/v1/models/sly/report"):
            v.page.goto(str(client.base_url.join(page)))
            frame = v.page.frame_locator("iframe") if page.startswith("/models") else v.page
            expect(frame.get_by_role("heading", name="A report")).to_be_visible()
            expect(v.page).not_to_have_title("taken")
            assert failed.pop("https://evil.example/a.png") == "csp"
        assert v.complaints, "the browser says what it kept from running"
        v.complaints.clear()


def test_a_model_that_is_not_there_is_said_to_be_so(visit: Visitor, address: str) -> None:
    v = visit()
    v.page.goto(f"{address}/models/nobody")
    expect(v.page.get_by_role("alert")).to_contain_text("This model is not loaded any more. There is no model 'nobody'")
    assert {text[: len(REFUSED)] for text in v.complaints} == {REFUSED}
    v.complaints.clear()


@pytest.mark.parametrize(
    ("channels", "padding", "shown"),
    [
        (1, "background", "rgb(0, 0, 0)"),
        (1, "edge", "rgba(0, 0, 0, 0)"),
        (1, (90,), "rgb(90, 90, 90)"),
        (3, (9, 80, 200), "rgb(9, 80, 200)"),
    ],
)
def test_a_picture_stands_between_the_bars_that_the_model_sees(
    visit: Visitor, tmp_path: Path, channels: int, padding: Any, shown: str
) -> None:
    """In a frame of the model's own aspect; a repeated edge is left to the page's background."""
    save_tiny(tmp_path, shape=spec(12, 30, channels, resize="pad", padding=padding))
    with serving(Settings(models=tmp_path)) as client:
        guest = visit()
        guest.open(str(client.base_url))
        guest.sample("a bag")
        frame = guest.page.locator('[data-figure="input"] .frame')
        picture = frame.locator("img")
        expect(picture).to_be_visible()
        expect(picture).to_have_css("background-color", shown)
        expect(picture).to_have_css("object-fit", "contain")
        box = frame.bounding_box()
        assert box is not None
        assert box["width"] / box["height"] == pytest.approx(30 / 12, rel=0.05)


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_a_contact_sheet_is_filled_in_by_keyboard_and_saved_as_the_list(
    size: str, scheme: str, tmp_path: Path, visit: Visitor
) -> None:
    draw_folder(tmp_path / "sorted", 8, seed=0)
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for path in (tmp_path / "sorted").glob("*/*.png"):
        path.rename(photos / f"{path.parent.name}, {path.name}")  # a comma, which a CSV quotes
    command = ["label", str(photos), "--count", "6", "--out", str(out), "--base", str(ROOT / "models/fashion-mnist/1")]
    assert training(command) == 0
    page = visit(size, scheme, accept_downloads=True).page
    page.goto((out / "sheet.html").as_uri())
    expect(page.locator("#state")).to_have_text("0 of 6 have a label")
    for _ in range(5):
        page.keyboard.type('a "bag"')
        page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("5 of 6 have a label")
    page.reload()
    expect(page.locator("#state")).to_have_text("5 of 6 have a label")  # typed work outlives the page
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), "scrolls sideways"
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"sheet-{size}-{scheme}.png", full_page=True)
    before = (out / "labels.csv").read_text()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save labels.csv").click()
    saved.value.save_as(out / "labels.csv")
    filled = list(csv.reader((out / "labels.csv").read_text().splitlines()))
    assert [path for path, _ in filled] == [path for path, _ in csv.reader(before.splitlines())]
    assert [label for _, label in filled] == ["label", *['a "bag"'] * 5, ""]


def test_a_guess_is_taken_by_one_key(tmp_path: Path, visit: Visitor) -> None:
    draw_folder(tmp_path / "sorted", 8, seed=0)
    kinds = sorted(path.name for path in (tmp_path / "sorted").iterdir())
    (tmp_path / f"sorted/{kinds[0]}/0.png").rename(tmp_path / f"sorted/{kinds[1]}/astray.png")
    out = tmp_path / "out"
    command = ["label", str(tmp_path / "sorted"), "--out", str(out), "--base", str(ROOT / "models/fashion-mnist/1")]
    assert training(command) == 0
    page = visit().page
    page.goto((out / "sheet.html").as_uri())
    card = page.locator("li", has_text="astray.png")
    expect(card.locator("input")).to_have_value(kinds[1])
    card.locator("input").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(card.locator("input")).to_have_value(kinds[0])
