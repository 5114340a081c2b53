"""A line is stored whole or not at all, whoever else writes, and whatever happens meanwhile."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, environment

from app.bundle.spool import FILE, Record, Spool, read
from app.errors import NotStored, SettingsInvalid

RECORD = Record(
    request_id="r",
    index=0,
    model="tiny",
    version=1,
    digest="d",
    encoder="e",
    scorer=None,
    image="i",
    label="Hüte",
    of_anomaly=False,
    predicted="cat",
    tensors={"embedding": np.arange(5, dtype=np.float32)},
    distances=np.array([0.5, 2]),
    picture=b"\x00\xffpicture",
)

WRITER = (  # for a process of its own: `s` is the spool in its first argument, `r` the record of its second
    "import sys; from dataclasses import replace; from pathlib import Path;"
    "from app.bundle.spool import Record, Spool; from app.errors import NotStored;"
    "s = Spool(Path(sys.argv[1]), 10**6, 'GRAFT_FEEDBACK'); r = Record.of_line(sys.argv[2].encode())"
)


def spool(folder: Path, most: int = 1_000_000) -> Spool:
    return Spool(folder, most, "GRAFT_FEEDBACK")


def labels(folder: Path) -> list[str]:
    return [each.label if isinstance(each, Record) else str(each) for each in read(folder)]


def numbered(*numbers: int) -> list[Record]:
    return [replace(RECORD, label=str(number)) for number in numbers]


def test_what_is_stored_is_read_back(tmp_path: Path) -> None:
    spool(tmp_path / "new" / "folder").append([RECORD, replace(RECORD, picture=None, predicted=None, distances=None)])
    first, second = read(tmp_path / "new" / "folder")
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    np.testing.assert_array_equal(first.tensors["embedding"], RECORD.tensors["embedding"])
    assert first.distances is not None
    assert first.distances.tolist() == [0.5, 2]
    assert replace(first, tensors={}, distances=None) == replace(RECORD, tensors={}, distances=None)
    assert (second.picture, second.predicted, second.distances) == (None, None, None)


def test_several_processes_append_at_once_and_no_line_is_lost(tmp_path: Path) -> None:
    code = f"{WRITER}; [s.append([replace(r, label=str(int(sys.argv[3]) + n))]) for n in range(25)]"
    command = [sys.executable, "-c", code, str(tmp_path), RECORD.to_line().decode()]
    writers = [subprocess.Popen([*command, str(100 * each)], cwd=ROOT, env=environment()) for each in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert sorted(map(int, labels(tmp_path))) == [100 * each + n for each in range(4) for n in range(25)]


@pytest.mark.parametrize("kept", [1, 70_000, -1])
def test_half_a_line_that_a_crash_left_is_passed_over_and_then_cut_off(tmp_path: Path, kept: int) -> None:
    spool(tmp_path).append(numbered(1))
    half = replace(RECORD, picture=bytes(100_000)).to_line()[:kept]
    with (tmp_path / FILE).open("ab") as file:
        file.write(half)
    assert labels(tmp_path) == ["1"]
    spool(tmp_path).append(numbered(2))
    assert labels(tmp_path) == ["1", "2"]


def test_a_full_spool_refuses_all_of_a_request_and_keeps_what_it_has(tmp_path: Path) -> None:
    size = len(numbered(1)[0].to_line())
    bounded = spool(tmp_path, 2 * size)
    bounded.append(numbered(1))
    with pytest.raises(NotStored, match=f"the spool has {size:,} of at most {2 * size:,} bytes .FEEDBACK_MB."):
        bounded.append(numbered(2, 3))
    bounded.append(numbered(4))
    assert labels(tmp_path) == ["1", "4"]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """The limit on a file's size fails a write midway, as a full disk does."""
    size = len(RECORD.to_line())
    code = (
        f"{WRITER}; import resource, signal; s.append([r]); signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 50}, {size + 50}))\n"
        "try: s.append([r])\n"
        "except NotStored as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), RECORD.to_line().decode()]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "the feedback was not stored: File too large" in done.stdout, done.stderr
    assert (tmp_path / FILE).read_bytes() == RECORD.to_line()


def test_the_file_may_be_moved_away_meanwhile(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    writer.append(numbered(1))
    (tmp_path / FILE).rename(tmp_path / "before.jsonl")
    writer.append(numbered(2))
    assert labels(tmp_path) == ["1", "2"]
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("line", [b"{}", b"[]", b"\xff", b'{"label": 3}', b"x" * 100])
def test_a_line_that_cannot_be_read_is_named_and_passed_over(tmp_path: Path, line: bytes) -> None:
    spool(tmp_path).append(numbered(1))
    with (tmp_path / FILE).open("ab") as file:
        file.write(line + b"\n")
    spool(tmp_path).append(numbered(3))
    first, second, third = labels(tmp_path)
    assert (first, third) == ("1", "3")
    assert second.startswith(f"{FILE}, line 2: ")


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsInvalid, match=r"GRAFT_FEEDBACK=.*file: nothing can be written there"):
        spool(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
