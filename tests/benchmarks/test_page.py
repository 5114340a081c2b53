from pathlib import Path

import pytest

import benchmarks.__main__ as bench
from benchmarks import page, quality
from benchmarks.home import Made
from benchmarks.workloads import WORKLOADS

MADE = Made("2026-11-21T10:00:00+00:00", "abc1234", "Some CPU, 2 cores, Python 3.11.7")
TEXT = """# A page

<!-- begin png: make bench ONLY=png DOC=1 -->

| old |

<!-- end png -->

Between.

<!-- begin png-raw: make bench ONLY=png-raw DOC=1 -->
<!-- end png-raw -->

The end.
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    return path


def test_a_table_replaces_what_stands_between_its_markers_and_nothing_else(written: Path) -> None:
    page.write(written, "png", "| new |\n", [MADE])
    stamp = "Measured 2026-11-21 at commit abc1234 on Some CPU, 2 cores, Python 3.11.7."
    assert written.read_text() == TEXT.replace("| old |", f"| new |\n\n{stamp}")


def test_writing_twice_is_writing_once(written: Path) -> None:
    page.write(written, "png-raw", "| new |", [MADE])
    once = written.read_text()
    page.write(written, "png-raw", "| new |", [MADE])
    assert written.read_text() == once


def test_a_table_may_hold_backslashes_and_is_no_pattern(written: Path) -> None:
    page.write(written, "png", r"| \1 \g<name> |", [MADE])
    assert r"| \1 \g<name> |" in written.read_text()


def test_a_page_without_such_a_block_is_left_as_it_is(written: Path) -> None:
    with pytest.raises(ValueError, match="no table 'resnet': add <!-- begin resnet -->"):
        page.write(written, "resnet", "| new |", [MADE])
    assert written.read_text() == TEXT


def test_measurements_made_apart_name_each_day_commit_and_machine_once() -> None:
    later = MADE._replace(when="2026-11-23T09:00:00+00:00", machine="Another, 8 cores, Python 3.12.1")
    assert page.stamp([later, MADE, MADE]) == (
        "Measured 2026-11-21 to 2026-11-23 at commit abc1234 "
        "on Some CPU, 2 cores, Python 3.11.7; Another, 8 cores, Python 3.12.1."
    )


def test_the_pages_of_the_bench_have_a_block_for_everything_the_bench_writes() -> None:
    assert page.blocks(bench.PAGE).keys() == {"bars", "workloads"}
    assert page.blocks(bench.RESULTS_PAGE).keys() == {each.name for each in WORKLOADS} | {"sessions", "profile"}


def test_the_quality_page_has_a_block_for_every_measure() -> None:
    assert page.blocks(quality.PAGE).keys() == set(quality.PARTS.split(","))


@pytest.mark.parametrize("path", [bench.PAGE, bench.RESULTS_PAGE, quality.PAGE], ids=lambda path: path.stem)
def test_every_table_of_a_page_says_when_it_was_measured(path: Path) -> None:
    for block, text in page.blocks(path).items():
        assert "\nMeasured " in text, block
