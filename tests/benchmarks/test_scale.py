from pathlib import Path

import httpx
import psutil
from support import draw_folder

from benchmarks import scale


def test_what_is_sent_is_a_form_of_images(client: httpx.Client, tmp_path: Path) -> None:
    files = sorted(draw_folder(tmp_path / "drawn", 2, seed=0).rglob("*.png"))
    kind = {"Content-Type": f"multipart/form-data; boundary={scale.BOUNDARY}"}
    answer = client.post("/v1/classify", content=scale.body(files), headers=kind)
    assert len(answer.json()["results"]) == len(files)


def test_a_large_folder_is_made_of_few_images(tmp_path: Path) -> None:
    made = scale.copies(draw_folder(tmp_path / "drawn", 2, seed=0), 19)
    assert len(list(made.rglob("*.png"))) == 19


def test_a_row_is_of_medians_and_of_each_repetitions_own_ratio() -> None:
    rates, per_cpu_second = {1: [100.0, 300.0, 200.0], 2: [150.0, 600.0, 380.0]}, {1: [1.0], 2: [2.0]}
    assert scale.row("x", rates, per_cpu_second) == "| x | 200 | 380 | 1 | 2 | 1.90 | 1.50 to 2.00 |"


def test_time_of_the_processor_is_told_apart_from_the_walls() -> None:
    clock = scale.Clock(psutil.Process())
    while clock.spent()[1] < 0.02:
        sum(range(1000))
    wall, own, every = clock.spent()
    assert own > 0
    assert wall > 0
    assert every >= 0
