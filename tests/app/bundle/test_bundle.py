from pathlib import Path

import numpy as np
import pytest
from support import LATENT, save_tiny

from app.bundle import Bundle, load
from app.errors import OperationUnavailable

IMAGES = np.random.default_rng(5).integers(0, 256, (9, 6, 4, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    return load(models / "tiny/1")


def test_parts_and_whole_agree(bundle: Bundle) -> None:
    encoded = bundle.encode(IMAGES)
    everything = bundle.run_all(IMAGES)
    assert set(everything) == {"embedding", "reconstruction", "logits"}
    assert encoded["embedding"].shape == (9, LATENT)
    np.testing.assert_array_equal(everything["reconstruction"], bundle.reconstruct(encoded))
    np.testing.assert_array_equal(everything["logits"], bundle.logits(encoded))
    assert [c.index for c in bundle.classify(IMAGES)] == everything["logits"].argmax(axis=1).tolist()


def test_a_batch_gives_what_its_images_give_alone(bundle: Bundle) -> None:
    together = bundle.run_all(IMAGES)
    for i, image in enumerate(IMAGES):
        for name, values in bundle.run_all(image[None]).items():
            np.testing.assert_allclose(values[0], together[name][i], atol=1e-5)


def test_the_anomaly_score_is_made_of_its_stated_parts(bundle: Bundle) -> None:
    assert bundle.manifest.anomaly is not None
    a = bundle.manifest.anomaly
    encoded = bundle.encode(IMAGES)
    drawn = bundle.reconstruct(encoded)
    for image, code, back, found in zip(IMAGES, encoded["embedding"], drawn, bundle.anomaly(IMAGES), strict=True):
        error, distance = np.mean((back - image / 255) ** 2), np.linalg.norm(code)  # whitened by the identity
        assert found.reconstruction_error == pytest.approx(error, rel=1e-5)
        assert found.latent_distance == pytest.approx(distance, rel=1e-5)
        score = sum((part - d.mean) / d.std for part, d in zip((error, distance), a.distances, strict=True))
        assert found.score == pytest.approx(score, rel=1e-4)
        assert found.anomalous == (found.p_value <= a.false_alarm_rate) == (found.score > found.threshold)


def test_what_a_bundle_lacks_it_says(tmp_path: Path) -> None:
    bare = load(save_tiny(tmp_path, "bare", head=False, decoder=False))
    encoded = bare.encode(IMAGES)
    for call in (lambda: bare.classify(IMAGES), lambda: bare.reconstruct(encoded), lambda: bare.anomaly(IMAGES)):
        with pytest.raises(OperationUnavailable, match=r"bare@1 has no .* it can: encode, predict$"):
            call()
