from pathlib import Path

from training import jsonl


def test_lines_that_were_cut_short_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2{"a": 3}\n\n[4]\n\xff\x00\n{"a": "\xff"}\n{"a": 5}\n{"a"')
    assert jsonl.read(path) == [{"a": 1}, {"a": "\ufffd"}, {"a": 5}]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert jsonl.read(tmp_path / "nowhere.jsonl") == []
    assert jsonl.read(tmp_path) == []
