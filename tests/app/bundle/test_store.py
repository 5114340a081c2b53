import hashlib
import io
import json
import os
import re
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import LABELS, save_tiny, tiny

from app.bundle import assemble, load, save, with_references
from app.bundle.manifest import seal_of
from app.bundle.store import versions
from app.errors import (
    BundleError,
    BundleExists,
    BundleFileMissing,
    ChecksumMismatch,
    GoldenMismatch,
    ManifestInvalid,
    ReferenceInvalid,
    SchemaTooNew,
    UnsafePath,
)


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A bundle of this test's own."""
    shutil.copytree(models / "tiny/1", tmp_path / "tiny/1")
    return tmp_path / "tiny/1"


def rewrite(folder: Path, **changes: object) -> None:
    """With a seal that is right: only what the change itself breaks is broken."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seal": seal_of(manifest)}))


def test_what_is_saved_loads_and_answers(models: Path) -> None:
    bundle = load(models / "tiny/1")
    assert (bundle.name, bundle.version, len(bundle.digest)) == ("tiny", 1, 64)
    assert bundle.operations == ["classify", "encode", "reconstruct", "anomaly", "predict", "decode"]
    images = np.random.default_rng(1).integers(0, 256, (3, 6, 4, 1), dtype=np.uint8)
    assert [c.label in LABELS for c in bundle.classify(images)] == [True] * 3


def test_a_bundle_in_memory_answers_as_the_saved_one(tmp_path: Path) -> None:
    fields, files = tiny()
    saved, drafted = load(save(tmp_path, "tiny", fields, files)), assemble("tiny", fields, files)
    images = np.random.default_rng(0).integers(0, 256, (5, *saved.manifest.input.shape), dtype=np.uint8)
    assert drafted.anomaly(images) == saved.anomaly(images)
    for name, values in saved.run_all(images).items():
        assert np.array_equal(values, drafted.run_all(images)[name]), name


def test_references_change_and_the_graphs_stay(tmp_path: Path) -> None:
    fields, files = tiny()
    with np.load(io.BytesIO(files["reference.npz"])) as stored:
        arrays = dict(stored)
    without = fields | {"anomaly": None, "reference": None}
    bare = assemble("tiny", without, {name: data for name, data in files.items() if name != "reference.npz"})
    fitted = with_references(bare, {"anomaly": fields["anomaly"], "reference": "reference.npz"}, arrays)
    assert (bare.scorer, "anomaly" in bare.operations, "anomaly" in fitted.operations) == (None, False, True)
    assert (fitted.encoder, fitted.head, fitted.decoder) == (bare.encoder, bare.head, bare.decoder)
    images = np.random.default_rng(0).integers(0, 256, (5, *bare.manifest.input.shape), dtype=np.uint8)
    assert fitted.anomaly(images) == load(save(tmp_path, "tiny", fields, files)).anomaly(images)
    with pytest.raises(ReferenceInvalid, match=r"tiny/1/reference\.npz: array embedding\.mean"):
        with_references(fitted, {}, arrays | {"embedding.mean": np.zeros(3, np.float32)})


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx", "head.onnx", "reference.npz", "golden.npz"])
def test_one_flipped_byte_is_found(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(ChecksumMismatch, match=rf"^tiny/1/{file}: .*damaged"):
        load(folder)


def test_no_flipped_byte_of_the_manifest_goes_unseen(folder: Path) -> None:
    whole = (folder / "manifest.json").read_bytes()
    for at in range(0, len(whole), 5):
        (folder / "manifest.json").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BundleError, match=r"^tiny/1/manifest\.json: "):
            load(folder)


@pytest.mark.parametrize("file", ["encoder.onnx", "golden.npz", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(BundleFileMissing, match=rf"^tiny/1/{file}: missing"):
        load(folder)


def test_a_pipe_in_place_of_a_file_does_not_hang(folder: Path) -> None:
    (folder / "head.onnx").unlink()
    os.mkfifo(folder / "head.onnx")
    with pytest.raises(BundleFileMissing, match=r"head\.onnx"):
        load(folder)


def test_an_unknown_field_a_newer_schema_and_a_climbing_path_are_told_apart(folder: Path) -> None:
    rewrite(folder, colour="red")
    with pytest.raises(ManifestInvalid, match="unknown field colour"):
        load(folder)
    rewrite(folder, schema_version=99)
    with pytest.raises(SchemaTooNew):
        load(folder)
    shutil.copy(folder / "manifest.json", folder / "copy")
    rewrite(folder, schema_version=1, files={"../../secret": "0" * 64})
    with pytest.raises(UnsafePath, match="climbs"):
        load(folder)


def test_a_golden_pair_that_no_longer_matches_is_refused(models: Path, tmp_path: Path) -> None:
    """Weights of another seed under sums that are right: everything agrees but what the graphs give."""
    fields, files = tiny(seed=0)
    path = save(tmp_path, "tiny", fields, files)
    other = tiny(seed=1)[1]["encoder.onnx"]
    (path / "encoder.onnx").write_bytes(other)
    sums = json.loads((path / "manifest.json").read_text())["files"]
    rewrite(path, files={**sums, "encoder.onnx": hashlib.sha256(other).hexdigest()})
    with pytest.raises(GoldenMismatch, match=r"^tiny/1/golden\.npz: embedding is off by .* does not reproduce itself"):
        load(path)


@pytest.mark.parametrize("place", ["tiny", "tiny/latest", "tiny/0", "tiny/01", "Tiny/1", ".tiny/1"])
def test_name_and_version_come_from_the_folder(folder: Path, place: str) -> None:
    target = folder.parent.parent / "elsewhere" / place
    shutil.copytree(folder, target)
    with pytest.raises(BundleError, match="<name>/<version>"):
        load(target)


def test_versions_rise_and_nothing_is_overwritten(tmp_path: Path) -> None:
    assert [save_tiny(tmp_path).name for _ in range(2)] == ["1", "2"]
    assert save_tiny(tmp_path, version=7).name == "7"
    assert save_tiny(tmp_path).name == "8"
    before = (tmp_path / "tiny/7/manifest.json").read_bytes()
    with pytest.raises(BundleExists, match="tiny/7 already exists"):
        save_tiny(tmp_path, version=7, seed=5)
    assert (tmp_path / "tiny/7/manifest.json").read_bytes() == before
    assert versions(tmp_path / "tiny") == [1, 2, 7, 8]
    assert not list((tmp_path / "tiny").glob(".*"))


def test_an_empty_folder_or_a_file_of_the_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "tiny/1").mkdir(parents=True)
    (tmp_path / "tiny/2").touch()
    with pytest.raises(BundleExists):
        save_tiny(tmp_path, version=1)
    assert save_tiny(tmp_path).name == "3"


def test_two_exports_at_once_take_two_versions(tmp_path: Path) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(save_tiny(tmp_path).name)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["1", "2", "3", "4", "5", "6"]


def test_a_bundle_that_fails_its_own_check_leaves_nothing_behind(tmp_path: Path) -> None:
    fields, files = tiny()
    with pytest.raises(BundleError):
        save(tmp_path, "tiny", fields, {**files, "head.onnx": b"not a graph"})
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("a file where the folder should be")
    with pytest.raises(BundleError, match=re.escape("cannot be written")):
        save_tiny(tmp_path)


@pytest.mark.parametrize("name", ["", "Upper", "../up", "a/b", ".dot", "x" * 65])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="cannot name a bundle"):
        save_tiny(tmp_path, name=name)


def test_parts_may_be_absent(tmp_path: Path) -> None:
    bare = load(save_tiny(tmp_path, "bare", head=False, decoder=False))
    assert bare.operations == ["encode", "predict"]
    plain = load(save_tiny(tmp_path, "plain", anomaly=False))
    assert plain.operations == ["classify", "encode", "reconstruct", "predict", "decode"]


def replace(folder: Path, file: str, data: bytes) -> None:
    """Other contents under a sum that is right."""
    (folder / file).write_bytes(data)
    sums = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files={**sums, file: hashlib.sha256(data).hexdigest()})


def packed(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def bare(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)  # type: ignore[arg-type]
    return buffer.getvalue()


CLAIM = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (5000000000000,), }".ljust(127) + b"\n"
)


def zipped(member: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mean.npy", member)
    return buffer.getvalue()


@pytest.mark.parametrize("file", ["reference.npz", "golden.npz"])
@pytest.mark.parametrize(
    "data",
    [
        packed(mean=np.array([object()], dtype=object)),
        bare(np.zeros(3)),
        bare(np.array([object()], dtype=object)),
        zipped(CLAIM),
        packed(mean=np.zeros(5))[:-30],
        b"",
        b"text",
    ],
    ids=["object", "npy", "npy of objects", "40 terabytes", "cut", "empty", "text"],
)
def test_what_is_no_plain_npz_is_refused(folder: Path, file: str, data: bytes) -> None:
    replace(folder, file, data)
    with pytest.raises(ReferenceInvalid, match=rf"^tiny/1/{file}: not an npz file of plain arrays"):
        load(folder)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("embedding.mean", np.zeros(4, np.float32)),
        ("embedding.mean", np.full(5, np.nan, np.float32)),
        ("embedding.basis", np.float32(1)),
        ("embedding.basis", np.zeros((4, 5), np.float32)),
        ("embedding.spread", np.zeros(5, np.float32)),
        ("calibration_scores", np.zeros(3)),
        ("calibration_scores", np.arange(199.0)[::-1]),
        ("calibration_scores", np.full(199, "x")),
        ("embedding.mean", None),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_by_array(folder: Path, array: str, value: object) -> None:
    with np.load(folder / "reference.npz") as stored:
        arrays: dict[str, object] = dict(stored)
    arrays = {name: kept for name, kept in {**arrays, array: value}.items() if kept is not None}
    replace(folder, "reference.npz", packed(**arrays))
    with pytest.raises(ReferenceInvalid, match=rf"^tiny/1/reference\.npz: array {array}: "):
        load(folder)
