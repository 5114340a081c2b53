from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import draw_inspection, spec

from app.bundle import InputSpec
from app.bundle.regions import label_regions
from training.data import masks
from training.data.imageset import ImageSet, Mask
from training.data.read import read_part
from training.data.splits import train_and_test
from training.measure.localisation import measures, overlaps
from training.recipe import Split

SPEC = spec(32, 32)


def slow_measures(data: ImageSet, maps: np.ndarray, shape: InputSpec) -> dict[str, float]:
    """By their definitions, threshold by threshold over all pixels."""
    sound, defective, regions = [], [], []
    for index in np.flatnonzero(masks.are_known(data)):
        numbers, counted = masks.placed(data, int(index), shape)
        mask = numbers > 0
        labels, count = label_regions(mask)
        sound.append(maps[index][counted & ~mask])
        defective.append(maps[index][mask])
        regions += [maps[index][labels == number + 1] for number in range(count)]
    negatives, positives = np.concatenate(sound), np.concatenate(defective)
    points = [(0.0, 0.0, 0.0)]
    for threshold in np.unique(np.concatenate([negatives, positives]))[::-1]:
        overlap = float(np.mean([(own >= threshold).mean() for own in regions]))
        points.append((float((negatives >= threshold).mean()), float((positives >= threshold).mean()), overlap))
    x, true, overlap_ = (np.array(column) for column in zip(*points, strict=True))

    def area(y: np.ndarray, limit: float) -> float:
        total = 0.0
        for (left, low), (right, high) in pairwise(zip(x, y, strict=True)):
            if left < limit:
                end = min(right, limit)
                reached = low + (high - low) * (end - left) / (right - left) if right > left else high
                total += (end - left) * (low + reached) / 2
        return total / limit

    return {"pixel_auroc": area(true, 1.0), "aupro_30": area(overlap_, 0.3), "aupro_5": area(overlap_, 0.05)}


def inspected(folder: Path, shape: InputSpec = SPEC) -> ImageSet:
    return train_and_test(str(draw_inspection(folder)), shape, Split(), seed=0)[1]


def noisy_maps(data: ImageSet, shape: InputSpec, levels: int | None, seed: int = 0) -> np.ndarray:
    """Higher where there is a defect; whole numbers, of which few differ, with `levels`."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(len(data), *shape.shape[:2]))
    for index in range(len(data)):
        maps[index] += 1.5 * (masks.placed(data, index, shape)[0] > 0)
    return (maps if levels is None else (maps * levels).round()).astype(np.float32)


@pytest.mark.parametrize("levels", [1, 4, None])
@pytest.mark.parametrize("shape", [SPEC, spec(32, 48, resize="pad"), spec(24, 20, resize="crop")])
def test_measures_are_those_of_their_definitions(tmp_path: Path, shape: InputSpec, levels: int | None) -> None:
    data = inspected(tmp_path, shape)
    maps = noisy_maps(data, shape, levels)
    found = measures(overlaps(data, maps, shape))
    for name, value in slow_measures(data, maps, shape).items():
        assert found[name].value == pytest.approx(value, abs=1e-6 if levels else 2e-3), name
        assert found[name].low <= found[name].value <= found[name].high


def test_pixel_auroc_is_that_of_scikit_learn(tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data = inspected(tmp_path)
    maps = noisy_maps(data, SPEC, None)
    truth = np.stack([masks.placed(data, index, SPEC)[0] > 0 for index in range(len(data))])
    expected = metrics.roc_auc_score(truth.ravel(), maps.ravel())
    assert measures(overlaps(data, maps, SPEC))["pixel_auroc"].value == pytest.approx(expected, abs=1e-4)


def test_a_perfect_map_reaches_one_and_an_inverted_one_nothing(tmp_path: Path) -> None:
    data = inspected(tmp_path)
    truth = np.stack([masks.placed(data, index, SPEC)[0] > 0 for index in range(len(data))]).astype(np.float32)
    assert {value.value for value in measures(overlaps(data, truth, SPEC)).values()} == {1.0}
    assert all(value.value < 0.02 for value in measures(overlaps(data, -truth, SPEC)).values())


def test_a_small_defect_counts_as_much_as_a_large_one(tmp_path: Path) -> None:
    """A map that shows one of two regions, the small one or the large one."""
    where = np.zeros((20, 20), np.uint8)
    where[1:3, 1:3] = 255
    where[6:18, 6:18] = 255
    for kind, pixels in (
        ("test/bad/0.png", where // 2),
        ("ground_truth/bad/0.png", where),
        ("train/good/0.png", where * 0),
    ):
        (tmp_path / kind).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / kind)
    _, data = train_and_test(str(tmp_path), spec(20, 20), Split(), seed=0)
    for region in (np.s_[1:3, 1:3], np.s_[6:18, 6:18]):
        shown = np.zeros((1, 20, 20), np.float32)
        shown[0][region] = 1
        found = measures(overlaps(data, shown, spec(20, 20)))
        assert found["aupro_30"].value == pytest.approx(0.5 + 0.5 * 0.3 / 2)


def test_bars_of_pad_and_defects_without_a_mask_are_not_counted(tmp_path: Path) -> None:
    shape = spec(32, 64, resize="pad")
    data = inspected(tmp_path, shape)
    maps = noisy_maps(data, shape, None)
    before = measures(overlaps(data, maps, shape))
    maps[:, :, :16] = maps[:, :, 48:] = 1000  # the bars
    hidden = int(np.flatnonzero(data.defective)[0])
    assert measures(overlaps(data, maps, shape)) == before
    kept = [Mask(None if index == hidden else mask.file, mask.image) for index, mask in enumerate(data.masks)]
    without = ImageSet(data.images, data.labels, data.classes, data.names, sound=data.sound, masks=tuple(kept))
    counts = overlaps(without, maps, shape)
    assert hidden not in counts.index
    assert len(counts.index) == len(data) - 1


def test_each_kind_has_measures_of_its_own(tmp_path: Path) -> None:
    data = inspected(tmp_path)
    truth = np.stack([masks.placed(data, index, SPEC)[0] > 0 for index in range(len(data))])
    dots = data.labels == data.classes.index("dot")
    maps = np.where(dots[:, None, None], truth, ~truth).astype(np.float32)  # right for dots alone
    counts = overlaps(data, maps, SPEC)
    assert measures(counts.of(dots))["aupro_5"].value == 1
    assert measures(counts.of(data.labels == data.classes.index("line")))["aupro_5"].value == 0
    assert not counts.of(~data.defective).can_be_measured


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    draw_inspection(tmp_path)
    (tmp_path / "ground_truth/dot/001_mask.png").write_bytes(b"text")
    _, data = train_and_test(str(tmp_path), SPEC, Split(), seed=0)
    with pytest.raises(masks.TrainingError, match=r"001_mask\.png \(not an image"):
        overlaps(data, np.zeros((len(data), 32, 32), np.float32), SPEC)
    assert read_part(str(tmp_path), "test", SPEC).sound is None
