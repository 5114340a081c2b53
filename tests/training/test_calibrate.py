import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import save_tiny

import training
from app.bundle import load
from app.bundle.scoring import AnomalyScorer, probabilities
from training.__main__ import main
from training.calibrate import anomaly, temperature
from training.errors import TrainingError

PARENT = Path(training.__file__).parents[1]
RNG = np.random.default_rng(0)


def test_the_temperature_that_made_the_labels_is_found() -> None:
    logits = RNG.normal(size=(20_000, 5)).astype(np.float32) * 3
    for true in (0.5, 1.0, 2.5):
        chances = probabilities(logits, true)
        labels = (chances.cumsum(axis=1) < RNG.random((len(logits), 1))).sum(axis=1)
        assert temperature(logits, labels) == pytest.approx(true, rel=0.05)


def normals(count: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images = RNG.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    points = (RNG.normal(size=(count, 6)) * [1, 2, 3, 4, 5, 0] + shift).astype(np.float32)
    noise = RNG.normal(scale=0.1 + shift / 10, size=images.shape)
    return images, points, (images / 255 + noise).astype(np.float32)


def test_false_alarms_on_fresh_normals_are_at_the_stated_rate_and_strangers_are_seen() -> None:
    """One direction of the codes is flat, as dead units make it."""
    calibration, reference = anomaly(normals(4000), normals(4000), "embedding", 0.02)
    scorer = AnomalyScorer(calibration, reference, size=6)
    fresh = scorer.score(*normals(20_000))
    assert 0.013 < np.mean([score.anomalous for score in fresh]) < 0.027
    assert np.mean([score.anomalous for score in scorer.score(*normals(500, shift=5.0))]) > 0.99
    assert calibration.calibrated_on == 4000
    assert calibration.quantiles["0.5"] < calibration.quantiles["0.99"]
    assert all(score.anomalous == (score.score > calibration.threshold) for score in fresh)


def test_what_cannot_be_calibrated_says_why() -> None:
    with pytest.raises(TrainingError, match="at least 999"):
        anomaly(normals(100), normals(100), "embedding", 0.001)
    images, points, reconstructions = normals(100)
    with pytest.raises(TrainingError, match="no variance"):
        anomaly((images, points * 0, reconstructions), normals(200), "embedding", 0.05)
    perfect = (images.astype(np.float32) / np.float32(255)).astype(np.float32)
    with pytest.raises(TrainingError, match="score alike"):
        anomaly((images, points, perfect), normals(200), "embedding", 0.05)


def drawn(folder: Path, count: int, levels: tuple[int, int]) -> Path:
    folder.mkdir()
    for number in range(count):
        noise = RNG.integers(*levels, (6, 4), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def test_a_bundle_is_calibrated_anew_from_a_folder_of_normals_without_torch(tmp_path: Path) -> None:
    old = save_tiny(tmp_path / "models")
    normals = drawn(tmp_path / "normals", 400, (0, 120))
    command = [sys.executable, "-X", "importtime", "-m", "training", "calibrate", str(old), str(normals)]
    done = subprocess.run(
        [*command, "--false-alarm-rate", "0.05"], cwd=PARENT, capture_output=True, text=True, check=True
    )
    assert " torch" not in done.stderr
    assert done.stdout.strip() == str(tmp_path / "models/tiny/2")
    before, after = load(old), load(tmp_path / "models/tiny/2")
    assert after.manifest.anomaly is not None
    assert after.manifest.anomaly.calibrated_on == 200
    assert after.manifest.files["encoder.onnx"] == before.manifest.files["encoder.onnx"]
    assert after.manifest.classifier == before.manifest.classifier
    fresh = RNG.integers(0, 120, (2000, 6, 4, 1), dtype=np.uint8)
    assert 0.01 < np.mean([score.anomalous for score in after.anomaly(fresh)]) < 0.12
    strange = RNG.integers(100, 256, (200, 6, 4, 1), dtype=np.uint8)
    assert np.mean([score.anomalous for score in after.anomaly(strange)]) > 0.9


def test_a_bundle_without_a_decoder_or_too_few_normals_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, whole = save_tiny(tmp_path / "models", "bare", decoder=False), save_tiny(tmp_path / "models")
    normals = str(drawn(tmp_path / "normals", 40, (0, 256)))
    for bundle, rate, says in ((bare, "0.1", "has no decoder"), (whole, "0.001", "at least 999")):
        assert main(["calibrate", str(bundle), normals, "--false-alarm-rate", rate]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["calibrate", str(whole), normals, "--false-alarm-rate", "2"])
