import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support import save_tiny

from app.bundle.manifest import SCHEMA_VERSION, Manifest, seal_of
from app.errors import BundleError, ChecksumMismatch, ManifestInvalid, SchemaTooNew, UnsafePath


@pytest.fixture
def fields(models: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((models / "tiny/1/manifest.json").read_text())
    return read


@pytest.fixture
def with_patches(tmp_path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((save_tiny(tmp_path, patches=True) / "manifest.json").read_text())
    return read


def parse(fields: object) -> Manifest:
    return Manifest.parse(json.dumps(fields).encode(), "tiny/1")


def paths(value: object, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where every field of every fixed table lies; tables whose keys are data are not entered."""
    if not isinstance(value, dict) or at[-1:] in [("files",), ("data",), ("versions",), ("quantiles",), ("outputs",)]:
        return []
    return [p for key, inner in value.items() for p in [(*at, key), *paths(inner, (*at, key))]]


def test_what_is_written_reads_back_the_same(fields: dict[str, Any]) -> None:
    manifest = parse(fields)
    assert Manifest.parse(manifest.to_json().encode(), "tiny/1") == manifest


# Optional field → the schema that added it.
LATER = {
    ("input", "padding"): 2,
    ("provenance", "weights"): 2,
    ("graphs", "patches"): 3,
    ("input", "tiles"): 4,
    ("classifier", "thresholds"): 5,
    ("index",): 6,
    ("codes",): 6,
}


def test_every_field_is_required_by_its_name(fields: dict[str, Any]) -> None:
    found = [path for path in paths(fields) if path not in LATER]
    assert len(found) > 50
    for path in found:
        less = copy.deepcopy(fields)
        table = less
        for key in path[:-1]:
            table = table[key]
        del table[path[-1]]
        with pytest.raises(ManifestInvalid) as refused:
            parse(less)
        if path != ("schema_version",):
            assert f"tiny/1/manifest.json: missing field {'.'.join(path)}" in str(refused.value)


def of_schema(version: int, fields: dict[str, Any]) -> dict[str, Any]:
    """As a Graft of that schema wrote it."""
    older = copy.deepcopy(fields) | {"schema_version": version}
    for path in (path for path, since in LATER.items() if since > version):
        *tables, last = path
        inner = older
        for key in tables:
            inner = inner[key]
        del inner[last]
    return older | {"seal": seal_of(older)}


def test_an_older_schema_loads_with_what_was_done_then(fields: dict[str, Any]) -> None:
    """Its bytes, and so its digest and its seal, are not touched."""
    older = of_schema(1, fields)
    manifest = parse(older)
    assert manifest.schema_version == 1
    assert manifest.input.padding == "background"
    assert manifest.provenance.weights is None
    assert manifest.classifier is not None
    assert manifest.classifier.thresholds is None
    assert manifest.seal == older["seal"]


@pytest.mark.parametrize("padding", ["edge", [40]])
def test_the_padding_is_part_of_the_manifest(fields: dict[str, Any], padding: object) -> None:
    fields["input"]["padding"] = padding
    fields["seal"] = seal_of(fields)
    assert parse(fields).input.padding == (padding if padding == "edge" else (40,))


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ([0.5], "classifier.thresholds: 1 for 3 labels"),
        ([0.5, 0.5, 1.0], "field classifier.thresholds.2: .* less than 1"),
    ],
)
def test_independent_labels_have_a_threshold_each(
    fields: dict[str, Any], thresholds: list[float], message: str
) -> None:
    fields["classifier"]["thresholds"] = thresholds
    with pytest.raises(ManifestInvalid, match=message):
        parse(fields | {"seal": seal_of(fields)})


@pytest.mark.parametrize("table", [(), ("input",), ("graphs",), ("graphs", "encoder"), ("golden",), ("provenance",)])
def test_an_unknown_field_is_named(fields: dict[str, Any], table: tuple[str, ...]) -> None:
    inner = fields
    for key in table:
        inner = inner[key]
    inner["colour"] = 1
    with pytest.raises(ManifestInvalid, match=rf"unknown field {'.'.join([*table, 'colour'])}"):
        parse(fields)


def test_a_newer_schema_asks_for_an_upgrade(fields: dict[str, Any]) -> None:
    fields["schema_version"] = SCHEMA_VERSION + 1
    with pytest.raises(SchemaTooNew, match="upgrade Graft"):
        parse(fields)


@pytest.mark.parametrize("schema", [0, -1, "1", None, True, 1.0, 1.5])
def test_what_is_no_schema_is_refused(fields: dict[str, Any], schema: object) -> None:
    fields["schema_version"] = schema
    with pytest.raises(ManifestInvalid, match="schema_version"):
        parse(fields)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "absolute"),
        ("C:\\weights.onnx", "absolute"),
        ("\\\\host\\share\\a", "absolute"),
        ("../other/encoder.onnx", "climbs"),
        ("a/../../b", "climbs"),
        ("..", "climbs"),
        ("sub/encoder.onnx", "plain"),
        (".hidden", "plain"),
        ("", "plain"),
        ("manifest.json", "plain"),
        ("a\x00b", "plain"),
    ],
)
def test_a_file_lies_in_the_bundle_or_nowhere(fields: dict[str, Any], name: str, why: str) -> None:
    fields["files"][name] = "0" * 64
    with pytest.raises(UnsafePath, match=why):
        parse(fields)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_a_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(ManifestInvalid, match=r"^tiny/1/manifest\.json: "):
        Manifest.parse(text, "tiny/1")


@pytest.mark.parametrize("field", ["graphs.encoder.file", "golden.file", "reference"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../encoder.onnx"])
def test_every_field_that_names_a_file_is_confined(fields: dict[str, Any], field: str, name: str) -> None:
    *tables, last = field.split(".")
    inner = fields
    for key in tables:
        inner = inner[key]
    inner[last] = name
    with pytest.raises(UnsafePath, match=f"field {field}: "):
        parse(fields)


def test_any_changed_value_breaks_the_seal(fields: dict[str, Any]) -> None:
    for path, value in ((("classifier", "temperature"), 9.6), (("anomaly", "threshold"), -99.0), (("title",), "other")):
        changed = copy.deepcopy(fields)
        table = changed
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = value
        with pytest.raises(ChecksumMismatch, match="field seal"):
            parse(changed)


def test_a_key_that_comes_twice_is_refused(fields: dict[str, Any]) -> None:
    text = json.dumps(fields).replace('"title"', '"title": "first", "title"', 1)
    with pytest.raises(ManifestInvalid, match="the same key twice"):
        Manifest.parse(text.encode(), "tiny/1")


MAP = {"name": "patch_features", "dtype": "float32", "shape": [-1, 1, 6, 4]}
DISTANCES = {"name": "anomaly_map", "dtype": "float32", "shape": [-1, 6, 4]}
DISTANCE = {"name": "patch_distance", "dtype": "float32", "shape": [-1, 1]}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("graphs.patches", None, "patches needs graphs.patches"),
        ("graphs.patches.input", {**MAP, "shape": [-1, 1, 6, 5]}, "graphs.patches.input: is not an output of"),
        ("graphs.patches.outputs", [DISTANCE, DISTANCES], "graphs.patches.outputs: must be anomaly_map"),
        ("graphs.patches.outputs", [DISTANCES, {**DISTANCE, "shape": [-1, 2]}], "graphs.patches.outputs: must be"),
        ("anomaly.distances.0.takes", "embedding", "the measure patches takes patches"),
        ("anomaly.distances.1.takes", "patches", "the measure patches takes patches"),
        ("graphs.head.input", MAP, "graphs.head.input: only explain and patches read a map"),
    ],
)
def test_a_memory_of_patches_that_does_not_fit_is_named(
    with_patches: dict[str, Any], path: str, value: object, message: str
) -> None:
    test_parts_that_disagree_are_named(with_patches, path, value, message)


EXPLAIN = {
    "file": "head.onnx",
    "input": {"name": "embedding", "dtype": "float32", "shape": [-1, 5]},
    "outputs": [{"name": "evidence", "dtype": "float32", "shape": [-1, 2, 4, 4]}],  # of two labels; there are three
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("classifier", None, "one is null"),
        ("classifier.labels", ["a", "b"], "2 labels for a head of 3 outputs"),
        ("reference", None, "anomaly"),
        ("latent_size", 7, "embedding"),
        ("input.height", 9, "graphs.encoder.input.shape"),
        ("input.channels", 2, "input.channels"),
        ("input.padding", [1, 2, 3], "input.padding: 3 levels for 1 channels"),
        ("input.padding", "mean", "input.padding"),
        ("graphs.head.input.name", "features", "graphs.head.input"),
        ("provenance.weights", {"backbone": "resnet18"}, "missing field provenance.weights.file"),
        ("anomaly.distances.1.takes", "features", "anomaly.distances.takes"),
        ("anomaly.distances.1.takes", "pixels", "reconstruction takes pixels"),
        ("anomaly.distances", [], "anomaly.distances"),
        ("feature_maps", [[2, 4, 4]], "feature_maps"),
        ("graphs.explain", EXPLAIN, "graphs.explain"),
        ("golden.file", "other.npz", "'other.npz' is not in files"),
        ("classifier.temperature", 0, "classifier.temperature"),
        ("classifier.temperature", 5e-324, "classifier.temperature"),
        ("classifier.labels", ["a", "b", "a"], "two labels are equal"),
        ("graphs.head.outputs", [], "graphs.head.outputs"),
        ("golden.outputs", {"embedding": 1e300}, "golden.outputs.embedding"),
        ("golden.outputs", {"embedding": 1e-4}, "golden.outputs: differs from"),
        ("latent_size", "5", "latent_size"),
        ("golden.pixels", True, "golden.pixels"),
        ("golden.pixels", 255, "golden.pixels"),
        ("anomaly.distances.0.std", 5e-324, "anomaly.distances.0.std"),
        ("files", {"encoder.onnx": "abc"}, "files.encoder.onnx"),
    ],
)
def test_parts_that_disagree_are_named(fields: dict[str, Any], path: str, value: object, message: str) -> None:
    *tables, last = path.split(".")
    inner = fields
    for key in tables:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = value
    with pytest.raises(BundleError) as refused:
        parse(fields)
    assert message in str(refused.value)
