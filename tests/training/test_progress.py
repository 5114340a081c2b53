import os
import pty
import subprocess
import sys
import time

import pytest
from support import ROOT

from training.progress import OutOfTime, quiet, say, track, until

COUNT = "import time; from training.progress import track; [time.sleep(.1) for _ in track(range(8), 'counting', 8)]"


def test_items_pass_through_unchanged() -> None:
    assert list(track(iter("abc"), "letters", 3)) == ["a", "b", "c"]


def test_a_terminal_sees_a_bar_with_the_count() -> None:
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", COUNT], cwd=ROOT, stderr=slave, env={**os.environ, "TERM": "xterm"}):
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:  # the other end has closed
                break
    os.close(master)
    assert b"counting" in shown
    assert b"/8" in shown


def test_a_file_sees_no_bar() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, stderr=subprocess.PIPE, check=True)
    assert done.stderr == b""


def test_nothing_is_said_while_it_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        say("a")
        with quiet():
            pass
        assert list(track("xy", "letters", 2)) == ["x", "y"]
        say("b")
    say("c")
    assert capsys.readouterr().err == "c\n"


def test_a_loop_stops_at_the_end_that_is_set() -> None:
    with until(time.monotonic() + 3600):
        assert list(track("xy", "letters", 2)) == ["x", "y"]
        with pytest.raises(OutOfTime, match="letters"), until(time.monotonic() - 1):
            list(track("xy", "letters", 2))
    assert list(track("xy", "letters", 2)) == ["x", "y"]
