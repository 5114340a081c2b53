import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import CannotScore
from app.score.formats import Csv, Format, JsonLines, cells
from app.score.table import Table

LABELS = ("cat", "dog, small")
FORMATS: dict[str, Format] = {"csv": Csv(LABELS), "jsonl": JsonLines(LABELS)}


def row(path: str, **changes: Any) -> dict[str, Any]:
    return {
        "path": path,
        "model": {"name": "tiny", "version": 1, "digest": "d" * 64},
        "label": "cat",
        "probabilities": {"dog, small": 0.25, "cat": 0.75},
        "score": 1e-7,
        "threshold": 2.5,
        "distances": {"reconstruction": 0.1},
        "in_domain": True,
        **changes,
    }


EXAMPLE = cells(row(""), LABELS)
PATHS = ["plain.png", 'with, "quotes".png', "two\nlines.png", "caf\u00e9.png", "no-utf8-\udcff.png"]


@pytest.fixture(params=FORMATS)
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"out.{request.param}"


def opened(out: Path) -> Table:
    return Table(out, FORMATS[out.suffix[1:]], EXAMPLE)


def written(out: Path, *paths: str) -> bytes:
    with opened(out) as table:
        table.add([row(path) for path in paths])
    return out.read_bytes()


def test_rows_are_found_again_whatever_their_paths(out: Path) -> None:
    written(out, *PATHS[:2])
    with opened(out) as table:
        assert table.done == set(PATHS[:2])
        table.add([row(path) for path in PATHS[2:]])
    with opened(out) as table:
        assert table.done == set(PATHS)


def test_a_torn_row_is_cut_off_wherever_it_was_torn(out: Path) -> None:
    whole = written(out, "a.png", "b.png")
    before = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for end in range(len(before), len(whole)):
        out.write_bytes(whole[:end])
        with opened(out) as table:
            assert table.done == {"a.png"}
        assert out.read_bytes() == before
    head = len(FORMATS[out.suffix[1:]].head(EXAMPLE))
    for end in range(head + 1):
        out.write_bytes(whole[:end])
        with opened(out) as table:
            assert table.done == set()
        assert out.read_bytes() == whole[:head]


@pytest.mark.parametrize(
    "foreign", [b"x", b"a,b\n1,2\n", b"\0" * 100, b'{"path": 1}\n', b"{}\n", b"\xff\xfe\n", b'"never closed\n' * 3]
)
def test_what_no_run_has_written_is_left_alone(out: Path, foreign: bytes) -> None:
    out.write_bytes(foreign)
    with pytest.raises(CannotScore, match="another --out"):
        opened(out)
    assert out.read_bytes() == foreign


def test_nor_is_what_somebody_added(out: Path) -> None:
    whole = written(out, "a.png") + b"a note\nand another\n"
    out.write_bytes(whole)
    with pytest.raises(CannotScore, match="after 1 rows"):
        opened(out)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "tiny", "version": 1, "digest": "e" * 64}}, r"eeeeeeeeeeee….*dddddddddddd…"),
        ({"threshold": 3.5}, "threshold 3.5.*has 2.5"),
        ({"probabilities": {"cat": 0.75}}, "another --top-k"),
    ],
)
def test_rows_made_otherwise_are_refused(out: Path, changes: dict[str, Any], message: str) -> None:
    other = row("a.png", **changes)
    with Table(out, FORMATS[out.suffix[1:]], cells(other | {"path": ""}, LABELS)) as table:
        table.add([other])
    with pytest.raises(CannotScore, match=message):
        opened(out)


def test_two_runs_do_not_write_one_file(out: Path) -> None:
    with opened(out), pytest.raises(CannotScore, match="another run is writing it"):
        opened(out)
    with opened(out):
        pass


def test_a_line_of_json_is_json_even_of_a_name_that_is_no_text(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = written(out, *PATHS).decode().splitlines()
    assert [json.loads(line)["path"] for line in lines] == PATHS
    assert "caf\u00e9" in lines[3]


def test_what_is_no_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(CannotScore, match="not a file"):
        opened(tmp_path / "out.csv")
