import io

from app.score.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def output(stream: io.StringIO, before: int = 0) -> str:
    """Of 1,000 images, eight a second."""
    clock = Clock()
    progress = Progress(1000, before, stream, clock)
    for done in range(before + 1, before + 301):
        clock.now += 0.125
        progress.tell(done)
    progress.clear()
    return stream.getvalue()


def test_lines_come_now_and_then_where_nobody_watches() -> None:
    lines = output(io.StringIO()).splitlines()
    assert lines[0] == "80 of 1,000 images, 8/s, 1:55 left"
    assert len(lines) == 3


def test_one_line_is_written_over_on_a_terminal() -> None:
    text = output(Terminal())
    assert "\n" not in text
    assert text.endswith("\r\x1b[K")
    assert "\r\x1b[K200 of 1,000 images, 8/s, 1:40 left" in text


def test_what_was_there_before_is_no_part_of_the_rate() -> None:
    assert output(io.StringIO(), before=500).splitlines()[0] == "580 of 1,000 images, 8/s, 0:52 left"
