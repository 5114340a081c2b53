"""From feedback to the next version: published if it is better, refused with a reason if it is not."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from support import LABELS, ROOT, environment, onnx_file, save_tiny, tiny, with_sets

from app.bundle import Bundle, assemble, load, save
from app.bundle.bundle import CARD_FILE
from app.bundle.encode import png_of
from app.bundle.spool import FILE, Record, Spool, encoder_of, scorer_of
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.feedback.learn import learn
from training.score import codes

RNG = np.random.default_rng(0)
COUNT = 150
PATTERNS = RNG.integers(60, 181, (len(LABELS), 6, 4, 1))


def drawn(count: int) -> np.ndarray:
    """(N, 6, 4, 1): the labels' patterns in turn, with noise."""
    return (PATTERNS[np.arange(count) % len(LABELS)] + RNG.integers(-15, 16, (count, 6, 4, 1))).astype(np.uint8)


def seen_by_another_camera(pixels: np.ndarray) -> np.ndarray:
    """Brighter on the left, with less contrast."""
    return (pixels * 0.5 + np.array([120, 60, 0, 0])[:, None]).astype(np.uint8)


def seen_by_a_third_camera(pixels: np.ndarray) -> np.ndarray:
    """Brighter on the right."""
    return (pixels * 0.5 + np.array([0, 0, 60, 120])[:, None]).astype(np.uint8)


def truth(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    return np.array([found.index for found in bundle.classify(pixels)])


def labelled(bundle: Bundle, pixels: np.ndarray) -> ImageSet:
    return ImageSet(pixels, truth(bundle, pixels), LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose labels are right by construction, with the codes that learning needs."""
    fields, files = tiny()
    files = with_sets(files)
    graph = fields["graphs"].head
    means = assemble("tiny", fields, files).encode(PATTERNS.astype(np.uint8))["embedding"]
    node = helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"])  # of the nearest mean
    weights = {"weight": 4 * means.T, "bias": -2 * np.square(means).sum(axis=1)}
    files[graph.file] = onnx_file([node], graph.input, graph.outputs[0], weights)
    bundle = assemble("tiny", fields, files)
    files |= codes.codes(bundle, labelled(bundle, drawn(400)), labelled(bundle, drawn(300)), most=1000)
    return save(tmp_path_factory.mktemp("models"), "tiny", fields | {"codes": codes.FILE}, files)


def copied(folder: Path, to: Path) -> Path:
    """The bundle in a folder of its own, where a next version may be made."""
    subprocess.run(["cp", "-r", str(folder.parent), str(to)], check=True)
    return to / folder.parent.name / folder.name


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return copied(folder, tmp_path)


def give(
    spool: Path, bundle: Bundle, pixels: np.ndarray, labels: Sequence[str], pictures: bool = False, **changes: object
) -> None:
    encoded = bundle.encode(pixels, patches=bundle.patches is not None)
    distances = None
    if bundle.scorer is not None:
        taken = bundle.taken(pixels, encoded, bundle.scorer.tensors)
        errors = np.zeros(len(pixels)) if bundle.scorer.reconstructs else None
        distances = bundle.scorer.distances(taken, errors)
    records = []
    for row, label in enumerate(labels):
        file = png_of(pixels[row])
        record = Record(
            request_id=f"r{row}",
            index=0,
            model=bundle.name,
            version=bundle.version,
            digest=bundle.digest,
            encoder=encoder_of(bundle.manifest),
            scorer=scorer_of(bundle.manifest),
            image=sha256(file).hexdigest(),
            label=label,
            of_anomaly=label in ("sound", "defect"),
            predicted=None,
            tensors={"embedding": encoded["embedding"][row]},
            distances=None if distances is None else distances[row],
            picture=file if pictures else None,
        )
        records.append(replace(record, **changes))  # type: ignore[arg-type]
    Spool(spool, 10**9, "GRAFT_FEEDBACK").append(records)


def accuracy(bundle: Bundle, pixels: np.ndarray, labels: np.ndarray) -> float:
    return float((truth(bundle, pixels) == labels).mean())


def test_where_torch_is_not_installed_corrections_give_back_what_a_camera_took(own: Path, tmp_path: Path) -> None:
    bundle, pixels, others = load(own), drawn(COUNT), drawn(400)
    shifted, wanted = seen_by_another_camera(others), truth(bundle, others)
    labels = [LABELS[label] for label in truth(bundle, pixels)]
    give(tmp_path / "spool", bundle, seen_by_another_camera(pixels), labels)
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'onnxscript', 'httpx', 'rich'));"
    code = f"{blocked} from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "learn", str(own), str(tmp_path / "spool")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.strip())
    assert made == own.parent / "2"
    assert "feedback held out" in done.stderr
    assert "FAILED" not in done.stderr
    after = load(made)
    before = accuracy(bundle, shifted, wanted)
    assert before < 0.8
    assert accuracy(after, shifted, wanted) > (1 + before) / 2
    assert accuracy(after, others, wanted) > 0.9
    assert bundle.sets is not None
    assert after.sets is None, "calibration images were scored by the head before"
    assert after.manifest.anomaly == bundle.manifest.anomaly
    assert after.manifest.files["encoder.onnx"] == bundle.manifest.files["encoder.onnx"]
    assert "Made by `graft-train learn` from version 1" in (made / CARD_FILE).read_text()


def test_a_version_that_has_learnt_learns_on(own: Path, tmp_path: Path) -> None:
    """A second correction holds the first one, too, whose feedback need not be kept."""
    bundle = load(own)
    for number, camera in enumerate((seen_by_another_camera, seen_by_a_third_camera)):
        pixels = drawn(COUNT)
        spool = tmp_path / f"spool-{number}"
        give(spool, bundle, camera(pixels), [LABELS[label] for label in truth(load(own), pixels)])
        bundle = load(learn(own.parent / str(number + 1), bundle, spool, seed=0))
    assert bundle.version == 3
    others = drawn(400)
    wanted = truth(load(own), others)
    for version in (1, 3):
        seen = accuracy(load(own.parent / str(version)), seen_by_another_camera(others), wanted)
        assert (seen > 0.8) == (version == 3)


Wrong = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize(
    "wrong",
    [lambda labels: (labels + 1) % 3, lambda labels: (labels + RNG.integers(1, 3, len(labels))) % 3],
    ids=["the next label", "drawn"],
)
@pytest.mark.parametrize("camera", [seen_by_another_camera, lambda pixels: pixels], ids=["another", "the same"])
def test_wrong_corrections_are_refused(own: Path, tmp_path: Path, wrong: Wrong, camera: Wrong) -> None:
    bundle, pixels = load(own), drawn(COUNT)
    labels = [LABELS[label] for label in wrong(truth(bundle, pixels))]
    give(tmp_path / "spool", bundle, camera(pixels), labels)
    with pytest.raises(TrainingError, match="not published: the head: "):
        learn(own, bundle, tmp_path / "spool", seed=0)
    assert [path.name for path in own.parent.iterdir()] == ["1"]


def test_what_was_learnt_already_is_not_published_again(own: Path, tmp_path: Path) -> None:
    bundle, pixels = load(own), drawn(COUNT)
    give(tmp_path / "spool", bundle, pixels, [LABELS[label] for label in truth(bundle, pixels)])
    with pytest.raises(TrainingError, match="the model is wrong of 0 of the 150 images in the spool: 10 corrections"):
        learn(own, bundle, tmp_path / "spool", seed=0)


def test_the_last_word_on_an_image_counts(own: Path, tmp_path: Path) -> None:
    bundle, pixels = load(own), drawn(COUNT)
    right = truth(bundle, pixels)
    shifted = seen_by_another_camera(pixels)
    for labels in ((right + 1) % 3, right):
        give(tmp_path / "spool", bundle, shifted, [LABELS[label] for label in labels])
    assert learn(own, bundle, tmp_path / "spool", seed=0) == own.parent / "2"


def test_feedback_on_another_encoder_needs_its_pictures(own: Path, tmp_path: Path) -> None:
    bundle, pixels = load(own), drawn(COUNT)
    labels = [LABELS[label] for label in truth(bundle, pixels)]
    shifted = seen_by_another_camera(pixels)
    give(tmp_path / "without", bundle, shifted, labels, encoder="0" * 64)
    with pytest.raises(TrainingError, match="0 images with labels in the spool: 30 are needed"):
        learn(own, bundle, tmp_path / "without", seed=0)
    give(tmp_path / "with", bundle, shifted, labels, encoder="0" * 64, pictures=True)
    assert learn(own, bundle, tmp_path / "with", seed=0) == own.parent / "2"


def test_what_a_spool_lacks_is_said(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = load(own)
    with pytest.raises(TrainingError, match="no such folder; give the one that GRAFT_FEEDBACK names"):
        learn(own, bundle, tmp_path / "nothing", seed=0)
    give(tmp_path / "other", bundle, drawn(2), ["cat", "dog"], model="other")
    (tmp_path / "other" / "older.jsonl").write_bytes(b"broken\n")
    with pytest.raises(TrainingError, match="no feedback on tiny in it"):
        learn(own, bundle, tmp_path / "other", seed=0)
    assert "left out lines that cannot be read (1): older.jsonl, line 1" in capsys.readouterr().err
    give(tmp_path / "few", bundle, drawn(20), ["cat"] * 15 + ["fish"] * 5)
    with pytest.raises(TrainingError, match="15 images with labels in the spool: 30 are needed"):
        learn(own, bundle, tmp_path / "few", seed=0)
    assert "labels that the model does not have: fish" in capsys.readouterr().err
    assert (tmp_path / "few" / FILE).is_file()


def test_a_bundle_without_codes_has_nothing_to_judge_a_head_by(tmp_path: Path) -> None:
    own = save_tiny(tmp_path / "models")
    bundle = load(own)
    give(tmp_path / "spool", bundle, drawn(40), ["cat"] * 40)
    with pytest.raises(TrainingError, match="tiny@1 has no codes of held-out images to judge a head by"):
        learn(own, bundle, tmp_path / "spool", seed=0)


# --- sound and defect ---------------------------------------------------------------------------------------------


@pytest.fixture
def inspecting(tmp_path: Path) -> Path:
    """Its anomaly score is the distance of pixels from dark ones."""
    return save_tiny(tmp_path / "models", "inspecting", patches=True, head=False, decoder=False)


def grey(count: int, low: int, high: int) -> np.ndarray:
    return RNG.integers(low, high, (count, 6, 4, 1), dtype=np.uint8)


def alarms(bundle: Bundle, pixels: np.ndarray) -> float:
    return float(np.mean([found.anomalous for found in bundle.anomaly(pixels)]))


def test_sound_images_that_were_called_anomalous_raise_the_threshold(inspecting: Path, tmp_path: Path) -> None:
    bundle = load(inspecting)
    sound, defects = grey(90, 90, 150), grey(30, 0, 256)
    assert alarms(bundle, sound) > 0.9
    give(tmp_path / "spool", bundle, sound, ["sound"] * 90)
    give(tmp_path / "spool", bundle, defects, ["defect"] * 30)
    after = load(learn(inspecting, bundle, tmp_path / "spool", seed=0))
    assert alarms(after, grey(200, 90, 150)) < 0.25
    assert alarms(after, grey(200, 0, 256)) > 0.9
    assert after.manifest.anomaly is not None
    assert after.manifest.anomaly.false_alarm_rate == 0.05


def test_exchanged_verdicts_are_refused(inspecting: Path, tmp_path: Path) -> None:
    bundle = load(inspecting)
    give(tmp_path / "spool", bundle, grey(90, 90, 150), ["defect"] * 90)
    give(tmp_path / "spool", bundle, grey(90, 0, 256), ["sound"] * 90)
    with pytest.raises(TrainingError, match="images said to be defects do not score higher"):
        learn(inspecting, bundle, tmp_path / "spool", seed=0)


def test_without_defects_a_threshold_is_not_raised(inspecting: Path, tmp_path: Path) -> None:
    bundle = load(inspecting)
    give(tmp_path / "spool", bundle, grey(90, 90, 150), ["sound"] * 90)
    with pytest.raises(TrainingError, match="90 sound images and 0 defects in the spool: 30 and 10 are needed"):
        learn(inspecting, bundle, tmp_path / "spool", seed=0)
