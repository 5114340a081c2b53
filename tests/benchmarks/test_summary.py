import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as bench
from benchmarks import page, summary
from benchmarks.bars import Bar
from benchmarks.home import Made
from benchmarks.memory import growth


def saved(name: str, rates: dict[str, dict[str, list[float]]], **more: Any) -> dict[str, Any]:
    """`rates`: server → load → requests per second of each repetition; p99 is 1000 divided by the rate."""
    rounds = [
        {
            "repetition": repetition,
            "server": server,
            "load": load,
            "per_second": rate,
            "p50_ms": 1.0,
            "p99_ms": 1000 / rate,
            "health_p99_ms": 7.0,
            "cpu_us": 5.0,
            "others": 0.0,
            "errors": 1,
        }
        for server, loads in rates.items()
        for load, each in loads.items()
        for repetition, rate in enumerate(each)
    ]
    starts = [{"server": server, "startup_s": 0.4, "memory_mb": 90.0} for server in rates]
    return {
        "workload": name,
        "title": f"title of {name}",
        "images": 1,
        "rounds": rounds,
        "starts": starts,
        "raw": [],
        "skipped": {},
        **more,
    }


PNG = saved(
    "png",
    {
        "floor": {"c=1": [800.0], "c=32": [900.0, 1000.0, 1100.0]},
        "naive": {"c=1": [100.0], "c=32": [90.0, 100.0, 900.0]},
        "graft": {"c=1": [150.0], "c=32": [500.0, 400.0, 300.0], "burst": [20.0]},
    },
)


def test_a_cell_is_the_median_of_its_repetitions_and_their_errors_together() -> None:
    cell = summary.Results(PNG).cells["naive", "c=32"]
    assert (cell.per_second, cell.errors) == (100.0, 3)


def test_a_ratio_is_the_median_of_each_repetitions_own_and_absent_where_one_rate_is() -> None:
    results = summary.Results(PNG)
    assert results.ratio("graft", "naive", "c=32") == 4.0  # of 500 / 90, 400 / 100, 300 / 900
    assert results.ratio("graft", "floor", "c=32") == 0.4
    assert results.ratio("graft", "litserve", "c=32") is None
    assert results.ratio("graft", "naive", "c=8") is None


def test_the_table_has_a_row_for_each_server_and_says_what_was_skipped() -> None:
    output = summary.table(summary.Results({**PNG, "skipped": {"ray": "no room", "bentoml": "does not do this"}}))
    head, _, *rows = [line for line in output.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == ["| bare ASGI", "| naive FastAPI", "| Graft"]
    assert all(row.count("|") == head.count("|") for row in rows)
    assert "| Graft | 150 (1.50×) | 400 (4.00×) | 40.0% | 1.00 / 2.50 |" in output
    assert "Skipped: Ray Serve: no room" in output
    assert "BentoML" not in output
    assert "Disturbed" not in output


def test_the_table_says_when_others_ran_on_the_servers_core() -> None:
    rounds = [{**PNG["rounds"][0], "others": 0.3}, *PNG["rounds"][1:]]
    assert "took up to 30% of the server's core" in summary.table(summary.Results({**PNG, "rounds": rounds}))


def test_bars_are_told_of_what_was_measured() -> None:
    resnet = saved(
        "resnet",
        {"naive": {"c=8": [50.0]}, "litserve": {"c=8": [40.0]}, "graft": {"c=8": [57.0, 27.0, 59.0]}},
        raw=[{"1": 58.0, "8": 60.0}, {"1": 59.0, "8": 30.0}, {"1": 60.0, "8": 62.0}],
    )
    memory = {"requests": 10, "after_mb": 120.0, "growth_mb": 0.0}
    bars = summary.bars([summary.Results(PNG), summary.Results(resnet)], memory)
    output = {bar.what: (round(bar.value, 3), bar.verdict) for bar in bars}
    assert output == {
        "one PNG, multipart, c=32, × naive": (4.0, "MISSED"),
        "one PNG, multipart, a lone client, × naive": (1.5, "MISSED"),
        "burst of 128 new connections, p99 in ms": (50.0, "MISSED"),
        "ResNet-18 at 224², c=8, of raw onnxruntime at its best batch": (0.95, "bar"),  # 57 of 60, 27 of 30, 59 of 62
        "ResNet-18, c=8, p99 against the best peer's": (0.877, "goal"),
        "/healthz under the heaviest of these, p99 in ms": (7.0, "bar"),
        "resident memory in MB, seed model, after 10 requests": (120.0, "bar"),
        "its growth in MB over the last half": (0.0, "goal"),
        "seconds from start to the first answer": (0.4, "bar"),
    }


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "MISSED"), (1.0, "bar"), (1.9, "bar"), (2.0, "goal")])
def test_a_bar_is_reached_at_its_number(value: float, verdict: str) -> None:
    assert Bar("", value, 1, 2).verdict == verdict
    assert Bar("", -value, -1, -2, higher_is_better=False).verdict == verdict


def test_raw_is_the_best_batchs_median() -> None:
    raw = [{"1": 10.0, "8": 30.0}, {"1": 12.0, "8": 20.0}, {"1": 90.0, "8": 40.0}]
    assert summary.Results({**PNG, "raw": raw}).raw == (8, 30.0)


def test_the_plot_is_a_picture_of_every_server_but_the_floor() -> None:
    drawn = ElementTree.fromstring(summary.plot([summary.Results(PNG)]))
    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "title of png" in texts
    assert "Graft 4.00× (400/s)" in texts
    assert not any("bare ASGI" in text for text in texts)


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "png.json").write_text(json.dumps({"outcome": PNG}))
    [results], memory = summary.read(tmp_path)
    assert (results.name, memory) == ("png", None)


def test_growth_is_counted_from_half_of_the_requests() -> None:
    assert growth([(0, 80.0), (40, 100.0), (90, 103.0), (100, 104.0)]) == 4.0


def test_the_overview_has_a_row_for_each_workload_with_the_best_peer() -> None:
    more = saved("jpeg-1mp", {"naive": {"c=8": [50.0]}, "litserve": {"c=8": [40.0]}, "bentoml": {"c=8": [45.0]}})
    _, _, png, jpeg = summary.overview([summary.Results(PNG), summary.Results(more)]).splitlines()
    assert png == "| title of png (`png`) | c=32 | 100 | 400 (4.00×) |  | 1.00 / 2.50 | 5 | 5 |"
    assert jpeg == "| title of jpeg-1mp (`jpeg-1mp`) | c=8 | 50.0 |  | BentoML 45.0 (0.90×) |  | 5 |  |"


def test_pages_get_what_was_measured_just_now_and_the_bars_of_all(tmp_path: Path) -> None:
    pages = tmp_path / "performance.md", tmp_path / "results.md"
    for source, copy in zip((bench.PAGE, bench.RESULTS_PAGE), pages, strict=True):
        shutil.copy(source, copy)
    made = Made("2026-11-21T10:00:00+00:00", "abc1234", "Some CPU, 2 cores, Python 3.11.7")
    later = made._replace(when="2026-11-22T10:00:00+00:00")
    png_raw = {**PNG, "workload": "png-raw"}
    for name, each, outcome in (("png", made, PNG), ("png-raw", later, png_raw)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, **each._asdict(), "outcome": outcome}))
    before = [page.blocks(path) for path in pages]
    bench.report(tmp_path, ["png"], pages)
    after = [page.blocks(path) for path in pages]
    changed = [{name for name in old if old[name] != new[name]} for old, new in zip(before, after, strict=True)]
    assert changed == [{"bars", "workloads"}, {"png"}]
    assert "| Graft | 150 (1.50×) | 400 (4.00×) |" in after[1]["png"]
    assert page.stamp([made]) in after[1]["png"]
    assert "| one PNG, multipart, c=32, × naive | 4.00 | ≥ 6 | ≥ 9 | MISSED |" in after[0]["bars"]
    assert page.stamp([made, later]) in after[0]["bars"]
    assert "Measured 2026-11-21 to 2026-11-22 at" in after[0]["workloads"]
