"""A folder of the user's own becomes the index of a bundle's next version, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, environment, save_tiny

from app.bundle import load, save
from app.bundle.bundle import CARD_FILE
from app.bundle.index import FILE
from training.__main__ import main
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.publish.reindex import reindex
from training.score import codes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("cat", "owl"):
        (tmp_path / "own" / kind).mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 256, (6, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "own" / kind / f"{number}.png")
    return tmp_path / "own"


def test_where_torch_is_not_installed_a_folder_is_indexed(folder: Path, tmp_path: Path) -> None:
    old = save_tiny(tmp_path / "models")
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'onnxscript', 'httpx', 'rich'));"
    code = f"{blocked} from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "index", str(old), str(folder), "--thumbnails"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "models/tiny/2")
    before, after = load(old), load(tmp_path / "models/tiny/2")
    assert after.index is not None
    assert len(after.index) == 10
    image = after.preprocess((folder / "owl" / "3.png").read_bytes())[None]
    rows, _ = after.index.nearest(after.encode(image)["embedding"])
    nearest = after.index.example(rows[0, 0])
    assert (nearest.label, nearest.file) == ("owl", "owl/3.png")
    assert nearest.thumbnail is not None
    files = set(before.manifest.files) - {CARD_FILE}
    assert {name: after.manifest.files[name] for name in files} == {name: before.manifest.files[name] for name in files}
    assert after.manifest.classifier == before.manifest.classifier
    assert after.manifest.anomaly == before.manifest.anomaly


def test_the_card_says_what_the_index_holds_now(folder: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        bundle = save_tiny(tmp_path / "models") if version == 1 else tmp_path / "models/tiny/2"
        assert main(["index", str(bundle), str(folder)]) == 0
    card = (tmp_path / "models/tiny/3" / CARD_FILE).read_text()
    assert card.count("## Index") == 1
    assert "among 10 of own, with labels, file names. Put there" in card
    assert "from version 2" in card


def test_more_images_than_an_index_holds_are_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "models")
    many = ImageSet(np.broadcast_to(np.zeros((6, 4, 1), np.uint8), (100_001, 6, 4, 1)), np.array([]), ())
    with pytest.raises(TrainingError, match="100,001 images; an index holds at most 100,000"):
        reindex(path, load(path), many, "many", thumbnails=False)


def test_of_its_own_images_a_bundle_gets_those_it_learnt_from_and_codes(trained: Path, images: Path) -> None:
    """As older bundles, which have neither."""
    [home] = [path for path in (trained / "models").iterdir() if path.is_dir()]
    new, unread = home / "1", ("schema_version", "golden", "files", "seal")
    before = load(new)
    fields = {name: value for name, value in before.manifest if name not in unread}
    kept = set(before.manifest.files) - {before.manifest.golden.file, FILE, codes.FILE}
    files = {name: (new / name).read_bytes() for name in kept}
    old = save(trained / "older", home.name, fields | {"index": None, "codes": None}, files)
    assert main(["index", str(old), str(images), "--most", "7"]) == 0
    after = load(old.parent / "2")
    assert after.index is not None
    assert len(after.index) == 7
    first, second = (codes.read(before, (each / codes.FILE).read_bytes()) for each in (new, old.parent / "2"))
    np.testing.assert_array_equal(first.held_out.labels, second.held_out.labels)
    np.testing.assert_allclose(first.train.logits, second.train.logits, atol=1e-3)
