import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from support import LABELS, LATENT, save_tiny, tiny, with_sets

import training
from app.bundle import load, save
from app.bundle.manifest import MANIFEST_FILE, SCHEMA_VERSION, Metric, seal_of
from training.__main__ import main
from training.data.imageset import ImageSet
from training.publish.recalibrate import recalibrate
from training.score import latent_map, patches, reference

PARENT = Path(training.__file__).parents[1]
RNG = np.random.default_rng(0)


def drawn(folder: Path, count: int, levels: tuple[int, int]) -> Path:
    folder.mkdir()
    for number in range(count):
        noise = RNG.integers(*levels, (6, 4), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def test_a_bundle_is_calibrated_anew_from_a_folder_of_normals_without_torch(tmp_path: Path) -> None:
    fields, files = tiny()
    plane = latent_map.fit(RNG.normal(size=(20, LATENT)), np.array([]))
    files["reference.npz"] = reference.with_arrays(files["reference.npz"], plane.arrays())
    old = save(tmp_path / "models", "tiny", fields, files)
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
    assert before.drift is None
    assert after.drift is not None
    assert after.drift.window == 100
    assert after.drift.confidences is not None
    assert after.manifest.files["encoder.onnx"] == before.manifest.files["encoder.onnx"]
    assert after.manifest.classifier == before.manifest.classifier
    assert after.map is not None
    np.testing.assert_array_equal(after.map.points, plane.points)
    fresh = RNG.integers(0, 120, (2000, 6, 4, 1), dtype=np.uint8)
    assert 0.01 < np.mean([score.anomalous for score in after.anomaly(fresh)]) < 0.12
    unusual = RNG.integers(100, 256, (200, 6, 4, 1), dtype=np.uint8)
    assert np.mean([score.anomalous for score in after.anomaly(unusual)]) > 0.9


def test_with_anomalies_the_threshold_can_be_the_best_f1s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = save_tiny(tmp_path / "models")
    normals, odd = drawn(tmp_path / "normals", 300, (0, 120)), drawn(tmp_path / "odd", 60, (100, 256))
    command = ["calibrate", str(old), str(normals), "--threshold", "f1"]
    assert main(command) == 2
    assert "--threshold f1 needs --anomalies FOLDER: F1 counts anomalies too" in capsys.readouterr().err
    assert main([*command, "--anomalies", str(odd)]) == 0
    anomaly = load(tmp_path / "models/tiny/2").manifest.anomaly
    assert anomaly is not None
    assert anomaly.false_alarm_rate < 0.05, "they are far apart: hardly any normal lies above"
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'models/tiny/2'}\n"
    assert "all (60)" in err
    assert "the threshold was chosen on these images" in err


def test_anomalies_are_measured_where_the_rate_sets_the_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They do not change it. In a folder of both, those that are named sound are the normal ones."""
    old = save_tiny(tmp_path / "models")
    both = tmp_path / "both"
    both.mkdir()
    drawn(both / "good", 200, (0, 120))
    drawn(both / "crack", 20, (100, 256))
    drawn(both / "hole", 30, (100, 256))
    normals = str(both / "good")
    assert main(["calibrate", str(old), normals]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(old), str(both), "--anomalies", str(both)]) == 0
    err = capsys.readouterr().err
    assert "good are the normal images; left out: crack, hole" in err
    assert [line.split("  ")[0] for line in err.splitlines() if ") " in line and "note" not in line] == [
        "all (50)",
        "crack (20)",
        "hole (30)",
    ]
    assert "chosen on these" not in err
    alone, measured = (load(tmp_path / "models/tiny" / version).manifest.anomaly for version in ("2", "3"))
    assert measured == alone
    assert main(["calibrate", str(old), normals, "--anomalies", str(both / "empty")]) == 2


def test_the_card_says_what_the_new_manifest_says(tmp_path: Path) -> None:
    """However often it is done: it is written from the manifest, not from the card before."""
    fields, files = tiny()
    stale = "| false_alarm_rate | 0.9000 | 10 | long ago |"
    metrics = (
        Metric(name="accuracy", value=0.75, images=8, how="once"),
        Metric(name="false_alarm_rate", value=0.9, images=10, how="long ago"),
    )
    files["card.md"] = f"# by hand\n\n{stale}\n\n> An image is called anomalous above a score of 99.\n".encode()
    save(tmp_path / "models", "tiny", {**fields, "metrics": metrics}, files)
    normals = str(drawn(tmp_path / "normals", 60, (0, 120)))
    for version in ("1", "2"):
        assert main(["calibrate", str(tmp_path / "models/tiny" / version), normals, "--false-alarm-rate", "0.1"]) == 0
    bundle = load(tmp_path / "models/tiny/3")
    anomaly = bundle.manifest.anomaly
    assert anomaly is not None
    card = bundle.documents["card.md"].decode()
    assert card.startswith("# a tiny bundle\n")
    assert "| accuracy | 0.7500 | 8 | once |" in card
    assert card.count("An image is called anomalous") == 1
    assert (
        f"above a score of {anomaly.threshold:.3f}: 10.00% of normal images are, measured on 30 held-out ones" in card
    )
    assert "from version 2" in card
    assert "99" not in card
    assert stale not in card


def test_a_bundle_of_an_older_schema_gets_a_next_version_of_the_newest(tmp_path: Path) -> None:
    old = save_tiny(tmp_path / "models")
    fields = json.loads((old / MANIFEST_FILE).read_bytes()) | {"schema_version": 1}
    del fields["input"]["padding"]
    (old / MANIFEST_FILE).write_text(json.dumps(fields | {"seal": seal_of(fields)}))
    assert load(old).manifest.schema_version == 1
    assert main(["calibrate", str(old), str(drawn(tmp_path / "normals", 60, (0, 120)))]) == 0
    after = load(tmp_path / "models/tiny/2").manifest
    assert after.schema_version == SCHEMA_VERSION
    assert after.input == load(old).manifest.input


def test_too_few_normals_are_refused_and_a_decoder_is_not_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, whole = save_tiny(tmp_path / "models", "bare", decoder=False), save_tiny(tmp_path / "models")
    normals = str(drawn(tmp_path / "normals", 40, (0, 256)))
    assert main(["calibrate", str(whole), normals, "--false-alarm-rate", "0.001"]) == 2
    assert "at least 999" in capsys.readouterr().err
    assert main(["calibrate", str(bare), normals, "--false-alarm-rate", "0.1"]) == 0
    anomaly = load(tmp_path / "models/bare/2").manifest.anomaly
    assert anomaly is not None
    assert [distance.name for distance in anomaly.distances] == ["embedding.mahalanobis"], "without a decoder"
    assert load(tmp_path / "models/bare/2").drift is None, "20 images are none to tell drift by"
    with pytest.raises(SystemExit):
        main(["calibrate", str(whole), normals, "--false-alarm-rate", "2"])


def test_a_memory_of_patches_is_one_of_the_new_normals(tmp_path: Path) -> None:
    """It keeps its size. Images that the former memory knew are anomalous."""
    fields, files = tiny(patches=True, head=False, decoder=False)
    encoder = fields["graphs"].encoder
    dark = RNG.uniform(0, 0.3, (30, 1)).astype(np.float32)
    graph = patches.graph_of(encoder)
    shape = (1, *graph.input.shape[2:])
    level = patches.Level(shape, np.zeros(1, np.float32), np.eye(1, dtype=np.float32), dark, np.ones(30, np.float32))
    files[graph.file] = patches.to_onnx((level,), graph, 18)
    only = fields["anomaly"].distances[:1]
    before = tuple(Metric(name=name, value=0.5, images=9, how="x") for name in ("false_region_rate", "cluster_nmi"))
    fields |= {"anomaly": fields["anomaly"].model_copy(update={"distances": only}), "metrics": before}
    folder = save(tmp_path, "tiny", fields, files, tolerances=dict.fromkeys(("anomaly_map", "patch_distance"), 1e-3))
    bundle = load(folder)
    shape = (200, *bundle.manifest.input.shape)
    bright = RNG.integers(180, 250, shape, dtype=np.uint8)
    after = load(recalibrate(folder, bundle, ImageSet(bright, np.array([], np.int64), ()), 0.05, seed=0))
    assert after.manifest.files["encoder.onnx"] == bundle.manifest.files["encoder.onnx"]
    assert [metric.name for metric in after.manifest.metrics] == ["cluster_nmi"], "not what the former memory did"
    remembered = {each.name: each for each in onnx.load(tmp_path / "tiny/2/patches.onnx").graph.initializer}["memory0"]
    assert remembered.dims[1] == 30
    fresh, old = RNG.integers(180, 250, shape, dtype=np.uint8), RNG.integers(0, 70, shape, dtype=np.uint8)
    assert np.mean([score.anomalous for score in after.anomaly(fresh)]) < 0.2
    assert all(score.anomalous for score in after.anomaly(old))


@pytest.mark.parametrize("labelled", [True, False])
def test_prediction_sets_are_of_the_held_out_half_if_it_has_the_labels(tmp_path: Path, labelled: bool) -> None:
    """Those of the former images would promise nothing for these."""
    fields, files = tiny()
    metric = Metric(name="set_coverage", value=0.95, images=10, how="before")
    old = save(tmp_path, "tiny", {**fields, "metrics": (metric,)}, with_sets(files))
    images = RNG.integers(0, 120, (300, 6, 4, 1), dtype=np.uint8)
    labels = np.arange(300) % 3 if labelled else np.array([], np.int64)
    normals = ImageSet(images, labels, LABELS if labelled else ())
    after = load(recalibrate(old, load(old), normals, false_alarm_rate=0.05, seed=0))
    assert after.manifest.metrics == ()
    if not labelled:
        assert after.sets is None
        return
    assert after.sets is not None
    assert np.bincount(after.sets.labels).tolist() == [50, 50, 50]
