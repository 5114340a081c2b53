from pathlib import Path

import numpy as np
import pytest

from app.bundle import load
from training.data.folder import read_folder
from training.data.imageset import ImageSet
from training.measure import domains


def test_one_domain_is_not_told_from_itself_and_its_negative_is(trained: Path, images: Path) -> None:
    bundle = load(trained / "models" / "drawn" / "1")
    garments = read_folder(images / "train", bundle.manifest.input)
    order = np.random.default_rng(0).permutation(len(garments))
    target, source = garments.take(order[:240]), garments.take(order[240:])
    same = domains.distances(bundle, source, target)
    assert [each.what for each in same] == ["as images (thumbnails)", "as codes"]
    assert all(each.p_value > 0.05 for each in same)
    assert all(each.squared < each.by_chance for each in same)

    negatives = ImageSet(255 - source.images[:], source.labels, source.classes)
    other = domains.distances(bundle, negatives, target)
    assert all(each.p_value == pytest.approx(0.001) for each in other)
    assert all(far.squared > 2 * near.squared for far, near in zip(other, same, strict=True))
    (text,) = domains.words(other, "negatives", "garments")
    assert "the difference is significant (p 0.001)" in text


def test_of_too_few_images_nothing_is_said(trained: Path, images: Path) -> None:
    bundle = load(trained / "models" / "drawn" / "1")
    few = read_folder(images / "test", bundle.manifest.input).take(np.arange(40))
    assert domains.distances(bundle, few, few) == []
    assert domains.words([], "a", "b") == []
