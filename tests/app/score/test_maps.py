"""`--maps FOLDER`, in this process; test_command.py kills processes."""

import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import save_tiny, serving, spec, tiled_spec

from app.__main__ import main
from app.bundle.encode import png
from app.bundle.manifest import InputSpec
from app.bundle.regions import Size
from app.score.batches import Budget
from app.score.maps import Map, Maps, file_name
from app.settings import Settings


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles: the default remembers patches, `drawing` has a decoder, `neither` has none of both."""
    models = tmp_path_factory.mktemp("models")
    save_tiny(models, "default", shape=spec(height=24, width=40), patches=True, decoder=False)
    save_tiny(models, "drawing", shape=spec(height=24, width=40))
    save_tiny(models, "neither", decoder=False)
    return models


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound and odd ones of the same name, larger than the input; one lies on its side, and one is none."""
    folder = tmp_path_factory.mktemp("given") / "pictures"
    for kind, number in (("sound", 0), ("odd", 0), ("odd", 1)):
        pixels = np.zeros((48, 80), np.uint8)
        if kind == "odd":
            pixels[8:16, 60:68] = 255
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    lying, exif = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    lying.save(folder / "odd" / "1.png", exif=exif)
    (folder / "none.png").write_text("none")
    return folder


def score(models: Path, *arguments: Any) -> int:
    return main(["score", *map(str, arguments), "--models", str(models), "--batch", "4"])


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("rate", [None, "0.5"])
@pytest.mark.parametrize("operation", ["anomaly", "predict"])
def test_regions_are_what_the_service_answers(
    patches: Path, pictures: Path, tmp_path: Path, operation: str, rate: str | None
) -> None:
    out, table = tmp_path / "out.jsonl", tmp_path / "out.csv"
    options = ["--operation", operation, *(["--false-alarm-rate", rate] if rate else [])]
    assert score(patches, pictures, "--out", out, *options) == 0
    assert score(patches, pictures, "--out", table, *options) == 0
    rows = lines_of(out)
    files = [("image", Path(row["path"]).read_bytes()) for row in rows]
    params = {"regions": "true"} | ({"false_alarm_rate": rate} if rate else {})
    with serving(Settings(models=patches)) as client:
        answer = client.post(f"/v1/{operation}", params=params, files=files).json()
    names = ["odd/0.png", "odd/1.png", "sound/0.png"]
    assert [row["path"] for row in rows] == [str(pictures / name) for name in names]
    left_out = {"embedding", "reconstruction_error"}  # of this model the error is null
    expected = [{name: result[name] for name in result if name not in left_out} for result in answer["results"]]
    assert [{name: row[name] for name in row if name not in ("path", "model")} for row in rows] == expected
    assert [len(row["regions"]) for row in rows] == [1, 1, 0]
    assert rows[0]["regions"] == rows[1]["regions"], "upright, they are the same"
    with table.open(newline="") as file:
        assert [json.loads(row["regions"]) for row in csv.DictReader(file)] == [row["regions"] for row in rows]


@pytest.mark.parametrize("options", [["--operation", "classify"], ["--operation", "encode"], ["--model", "drawing"]])
def test_other_rows_have_no_regions(patches: Path, pictures: Path, tmp_path: Path, options: list[str]) -> None:
    assert score(patches, pictures, "--out", tmp_path / "out.jsonl", *options) == 0
    assert all("regions" not in row for row in lines_of(tmp_path / "out.jsonl"))


@pytest.mark.parametrize("model", ["default", "drawing"])
def test_every_picture_gets_a_map_that_its_row_names(patches: Path, pictures: Path, tmp_path: Path, model: str) -> None:
    out, maps = tmp_path / "out.jsonl", tmp_path / "maps"
    assert score(patches, pictures, "--out", out, "--maps", maps, "--model", model) == 0
    rows = lines_of(out)
    assert {path.name for path in maps.iterdir()} == {row["map"] for row in rows}
    assert [row["map"].rpartition("-")[0] for row in rows] == ["odd-0", "odd-1", "sound-0"]
    drawn = [np.asarray(Image.open(maps / row["map"])).astype(int) for row in rows]
    assert [each.shape for each in drawn] == [(48, 80, 3)] * 3
    if model == "default":
        left, top, right, bottom = (round(side) for side in rows[0]["regions"][0]["box"])
        for odd in drawn[:2]:
            inside = odd[top + 2 : bottom - 2, left + 2 : right - 2].reshape(-1, 3).mean(axis=0)
            assert inside[0] > inside[2] + 60, "orange"
            assert (odd[:, 0] == 0).all(), "far from it, nothing but the picture"
        assert not drawn[2].any(), "a black picture, and a map without a distance"


@pytest.mark.parametrize("model", ["default", "drawing"])
def test_the_map_is_the_services_heatmap(patches: Path, tmp_path: Path, model: str) -> None:
    """Of a picture of the input's size that has no regions."""
    pixels = np.random.default_rng(0).integers(0, 20, (24, 40), dtype=np.uint8)
    picture, out = tmp_path / "0.png", tmp_path / "out.jsonl"
    picture.write_bytes(png(Image.fromarray(pixels)))
    assert score(patches, picture, "--out", out, "--maps", tmp_path / "maps", "--model", model) == 0
    [row] = lines_of(out)
    with serving(Settings(models=patches)) as client:
        sent = {"files": {"image": picture.read_bytes()}, "headers": {"accept": "image/png"}}
        heatmap = client.post("/v1/anomaly", params={"model": model}, **sent).content
    levels = np.asarray(Image.open(io.BytesIO(heatmap)))[..., None]
    assert np.ptp(levels) > 20
    opacity = 0.85 * (levels / 255) ** 0.9
    expected = pixels[..., None] * (1 - opacity) + np.array([230, 159, 0]) * opacity
    drawn = np.asarray(Image.open(tmp_path / "maps" / row["map"]))
    assert np.abs(drawn - expected).max() < 2


def test_rows_that_are_done_keep_their_maps_and_later_pictures_get_theirs(
    patches: Path, pictures: Path, tmp_path: Path
) -> None:
    out, maps = tmp_path / "out.csv", tmp_path / "maps"
    maps.mkdir()
    (maps / "mine.txt").write_text("what a person keeps")
    assert score(patches, pictures / "odd", "--out", out, "--maps", maps) == 0
    before = {path: path.stat().st_mtime_ns for path in maps.iterdir()}
    assert len(before) == 3
    assert score(patches, pictures, "--out", out, "--maps", maps) == 0
    after = {path: path.stat().st_mtime_ns for path in maps.iterdir()}
    assert len(after) == 4
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("first", [True, False])
def test_a_file_begun_without_maps_is_not_gone_on_with_and_the_other_way_round(
    patches: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: bool
) -> None:
    out = tmp_path / "out.csv"
    maps = ["--maps", tmp_path / "maps"]
    assert score(patches, pictures, "--out", out, *(maps if first else [])) == 0
    assert score(patches, pictures, "--out", out, *([] if first else maps)) == 2
    assert f"made {'with' if first else 'without'} --maps; resume with the options" in capsys.readouterr().err


def test_names_are_of_one_path_each_and_of_no_folder() -> None:
    paths = ["a/0.png", "b/0.png", "a/0.jpg", "/a/0.png", "../a/0.png", "a-0.png", "..", "", "a/\udcff.png", "ä/é.png"]
    paths += [
        "../../etc/passwd",
        "a/..png",
        "a/b\\c.png",
        "x" * 300,
        "a/" + "é" * 250 + ".png",
        "a/b\0c.png",
        "-/-.png",
    ]
    names = [file_name(path) for path in paths]
    assert len(set(names)) == len(paths)
    for name in names:
        assert os.path.basename(name) == name
        assert name.endswith(".png")
        assert name[0] not in ".-"
        assert len(name.encode()) <= 255
        assert "\\" not in name
    assert names[0].startswith("a-0-")


def maps_in(folder: Path, budget: int = 1 << 30, input_spec: InputSpec | None = None) -> Maps:
    folder.mkdir(exist_ok=True)
    return Maps(folder, folder / "out.csv", input_spec or spec(), 10**6, max_bytes=10**6, budget=Budget(budget))


def result(picture: Path) -> tuple[dict[str, Any], Map]:
    picture.write_bytes(png(Image.new("L", (28, 28))))
    return {"path": str(picture), "map": "0.png"}, Map(np.zeros((28, 28), np.uint8), Size(28, 28))


def test_a_map_that_cannot_be_written_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A folder stands in the place of the map: the last step fails."""
    maps = maps_in(tmp_path / "maps")
    (maps.folder / "0.png").mkdir()
    with pytest.raises(OSError, match=r"0\.png") as raised:
        maps.write(*result(tmp_path / "a.png"))
    assert raised.value.errno in (errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)
    assert [path.name for path in maps.folder.iterdir()] == ["0.png"]


def test_what_a_killed_run_left_is_overwritten_and_links_are_not_followed(tmp_path: Path) -> None:
    maps, victim = maps_in(tmp_path / "maps"), tmp_path / "victim"
    victim.write_text("what a person keeps")
    row, map_ = result(tmp_path / "a.png")
    assert maps.write(row, map_) is None
    [drawn] = maps.folder.iterdir()
    whole = drawn.read_bytes()
    drawn.unlink()
    drawn.symlink_to(victim)
    [writing] = {f".{name}.writing" for name in [_hash_of(maps.out)]}
    (maps.folder / writing).symlink_to(victim)
    assert maps.write(row, map_) is None
    assert [path.name for path in maps.folder.iterdir()] == ["0.png"]
    assert not drawn.is_symlink()
    assert drawn.read_bytes() == whole
    assert victim.read_text() == "what a person keeps"


def _hash_of(out: Path) -> str:
    return file_name(str(out)).rpartition("-")[2].removesuffix(".png")


def test_a_picture_that_is_gone_or_takes_too_much_is_a_problem(tmp_path: Path) -> None:
    row, map_ = result(tmp_path / "a.png")
    problem = maps_in(tmp_path / "maps", budget=1000).write(row, map_)
    assert problem is not None
    assert (problem.path, problem.kind) == (row["path"], "too-many-pixels")
    (tmp_path / "a.png").unlink()
    problem = maps_in(tmp_path / "maps").write(row, map_)
    assert problem is not None
    assert (problem.kind, problem.detail) == ("unreadable", "no such file or directory")
    assert not list((tmp_path / "maps").iterdir())


def test_what_cannot_be_is_said_in_a_sentence(
    patches: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, maps = tmp_path / "out.csv", tmp_path / "maps"
    (tmp_path / "file").touch()
    cases: list[tuple[list[Any], str]] = [
        ([pictures, "--maps", maps, "--model", "neither"], "has neither a memory of patches nor a decoder"),
        ([pictures, "--maps", maps, "--operation", "classify"], "use --operation predict or anomaly"),
        ([pictures, "--maps", maps, "--operation", "encode"], "use --operation predict or anomaly"),
        ([pictures, "--maps", maps, "--ray", "local"], "--ray scores on others"),
        ([pictures, "--maps", tmp_path / "file"], "is a file; give a folder"),
        ([pictures, "--maps", tmp_path / "no" / "maps"], f"there is no folder {tmp_path / 'no'}"),
        ([pictures, "--maps", pictures / "maps"], f"lies in {pictures}"),
        ([pictures, "--maps", pictures], f"lies in {pictures}"),
        ([pictures, "--false-alarm-rate", "0.001"], "at least 999 are needed"),
    ]
    for arguments, message in cases:
        assert score(patches, *arguments, "--out", out) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("graft: ")
        assert error.count("\n") == 1
        assert message in error
    assert not out.exists()
    assert not maps.exists()
    assert sorted(path.name for path in pictures.iterdir()) == ["none.png", "odd", "sound"]


def test_pictures_in_tiles_have_rows_and_maps_of_their_own_sizes(tmp_path: Path) -> None:
    """A tall one, one that is smaller than a tile, and none; a second run has nothing left to do."""
    save_tiny(tmp_path / "models", shape=tiled_spec())
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.zeros((900, 70), np.uint8)
    pixels[512:544, 16:48] = 255
    Image.fromarray(pixels).save(folder / "tall.png")
    Image.fromarray(pixels[:20, :30]).save(folder / "tiny.png")
    (folder / "none.png").write_text("none")
    out, maps = tmp_path / "rows.jsonl", tmp_path / "maps"
    for _ in range(2):
        assert score(tmp_path / "models", folder, "--out", out, "--maps", maps, "--operation", "anomaly") == 0
        tall, small = sorted(lines_of(out), key=lambda row: -row["score"])
        [region] = tall["regions"]
        assert region["box"] == pytest.approx([16, 512, 48, 544], abs=8)
        assert small["regions"] == []
        drawn = np.asarray(Image.open(maps / tall["map"])).astype(int)
        assert drawn.shape == (900, 70, 3)
        assert np.ptp(drawn[528, 32]) > 20
        assert np.ptp(drawn[100, 32]) < 20
        assert np.asarray(Image.open(maps / small["map"])).shape == (20, 30, 3)
    [answered] = _served(tmp_path / "models", folder / "tall.png")
    assert answered["regions"] == tall["regions"]
    assert answered["score"] == pytest.approx(tall["score"])


def _served(models: Path, file: Path) -> list[dict[str, Any]]:
    with serving(Settings(models=models)) as client:
        answer = client.post("/v1/anomaly?regions=true", files={"image": file.read_bytes()})
        assert answer.status_code == 200
        return list(answer.json()["results"])
