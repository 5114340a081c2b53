from pathlib import Path

import numpy as np
from support import save_tiny, spec

from app.bundle import load
from app.bundle.heatmaps import grey_of_distances, grey_of_errors
from app.bundle.scoring import error_maps
from training.data.imageset import ImageSet
from training.measure.maps import anomaly_maps, has_maps, maps_of

RNG = np.random.default_rng(0)


def test_a_map_is_what_the_served_heatmap_shows(models: Path) -> None:
    bundle = load(models / "tiny/1")
    images = RNG.integers(0, 256, (40, *bundle.manifest.input.shape), dtype=np.uint8)
    maps = maps_of(bundle, ImageSet(images, np.array([], np.int64), ()), "maps")
    reconstructions = bundle.reconstruct(bundle.encode(images))
    for image, reconstruction, own in zip(images, reconstructions, maps, strict=True):
        served = grey_of_errors(error_maps(image[None], reconstruction[None])[0]).squeeze()
        assert np.abs(served - own * (255 / own.max())).max() <= 0.5001
    np.testing.assert_allclose(anomaly_maps(bundle, images[:3]), maps[:3], atol=1e-6)


def test_a_bundle_without_a_decoder_has_no_maps(tmp_path: Path, models: Path) -> None:
    assert has_maps(load(models / "tiny/1"))
    assert not has_maps(load(save_tiny(tmp_path, decoder=False)))


def test_the_map_of_a_memory_of_patches_is_the_served_one(tmp_path: Path) -> None:
    bundle = load(save_tiny(tmp_path, shape=spec(height=20, width=30), patches=True, decoder=False))
    images = RNG.integers(0, 256, (3, *bundle.manifest.input.shape), dtype=np.uint8)
    assert has_maps(bundle)
    distances = bundle.measure_patches(bundle.encode(images, patches=True))["anomaly_map"]
    for each, own in zip(distances, anomaly_maps(bundle, images), strict=True):
        served = grey_of_distances(each, 20, 30, bundle.white).squeeze()
        spread = max(bundle.white, each.max()) - each.min()
        assert np.abs(served - (own - each.min()) * 255 / spread).max() <= 0.5001
