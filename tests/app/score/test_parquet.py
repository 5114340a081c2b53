import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support import draw_folder, save_tiny

from app.__main__ import main
from app.errors import CannotScore
from app.score import parquet

try:
    import pyarrow.parquet as pq
except ModuleNotFoundError:
    pq = None

with_it = pytest.mark.skipif(pq is None, reason="pyarrow is not installed: pip install pyarrow")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", 2, seed=0)


def score(models: Path, *arguments: Any) -> int:
    return main(["score", *map(str, arguments), "--models", str(models), "--batch", "3"])


@pytest.mark.skipif(pq is not None, reason="pyarrow is installed")
def test_without_pyarrow_a_sentence_says_so_before_any_work(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CannotScore, match="pip install pyarrow"):
        parquet.require()
    assert score(models, photos, "--out", tmp_path / "out.parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@with_it
@pytest.mark.parametrize("operation", ["predict", "encode"])
def test_it_holds_what_csv_holds(models: Path, photos: Path, tmp_path: Path, operation: str) -> None:
    out, text = tmp_path / "out.parquet", tmp_path / "out.csv"
    for each in (out, text):
        assert score(models, photos, "--out", each, "--operation", operation) == 0
    table = pq.read_table(out)
    lines = text.read_text().splitlines()
    assert table.column_names == lines[0].split(",")
    assert len(table) == len(lines) - 1 == 8
    kinds = dict(zip(table.column_names, map(str, table.schema.types), strict=True))
    assert (kinds["path"], kinds["version"]) == ("string", "int64")
    assert kinds["e0" if operation == "encode" else "score"] == ("float" if operation == "encode" else "double")
    assert not list(tmp_path.glob("*partial*"))


@with_it
def test_regions_are_text_as_in_csv_and_maps_are_named(photos: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "models", patches=True)
    out, text = tmp_path / "out.parquet", tmp_path / "out.csv"
    for each in (out, text):
        for given in (photos / "bag", photos):
            assert score(tmp_path / "models", given, "--out", each, "--maps", tmp_path / "maps") == 0
    table = pq.read_table(out)
    with text.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("regions", "map"):
        assert str(table.schema.field(name).type) == "string"
        assert table[name].to_pylist() == [row[name] for row in rows]
    assert any(json.loads(row["regions"]) for row in rows)


@with_it
def test_images_that_came_later_are_added_and_other_options_refused(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    assert score(models, photos / "bag", "--out", out) == 0
    assert score(models, photos, "--out", out) == 0
    paths = pq.read_table(out).column("path").to_pylist()
    assert len(paths) == len(set(paths)) == 8
    assert paths[:2] == [str(photos / "bag" / "0.png"), str(photos / "bag" / "1.png")]
    assert score(models, photos, "--out", out, "--operation", "encode") == 2
    assert "--operation predict" in capsys.readouterr().err
    out.write_text("none")
    assert score(models, photos, "--out", out) == 2
    assert "not a parquet file" in capsys.readouterr().err


@with_it
def test_rows_that_were_gathered_before_are_turned_too(models: Path, photos: Path, tmp_path: Path) -> None:
    """As after a run that was killed: between its last row, and the end of its rows' own file."""
    out, gathered = tmp_path / "out.parquet", tmp_path / "out.parquet.partial.jsonl"
    assert score(models, photos / "bag", "--out", tmp_path / "bag.jsonl") == 0
    gathered.write_bytes((tmp_path / "bag.jsonl").read_bytes())
    assert score(models, photos, "--out", out) == 0
    whole = pq.read_table(out)
    assert len(whole) == 8
    gathered.write_bytes((tmp_path / "bag.jsonl").read_bytes())
    assert score(models, photos, "--out", out) == 0
    assert pq.read_table(out) == whole
