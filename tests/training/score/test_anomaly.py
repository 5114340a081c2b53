import numpy as np
import pytest

from app.bundle.scoring import AnomalyScorer
from training.errors import TrainingError
from training.recipe import DISTANCES
from training.score.anomaly import fit
from training.score.distances import Normals

RNG = np.random.default_rng(0)
ALL = ("reconstruction", "embedding.mahalanobis", "features.residual", "features.neighbours", "features.mahalanobis")


def normals(count: int, shift: float = 0.0) -> Normals:
    """One direction of the codes is flat, as dead units make it; the features hold two blocks of unlike size."""
    points = RNG.normal(size=(count, 6)) * [1, 2, 3, 4, 5, 0] + shift
    wide = RNG.normal(size=(count, 10)) @ np.random.default_rng(1).normal(size=(10, 400)) + shift
    features = np.concatenate([wide + RNG.normal(size=wide.shape) * 0.1, RNG.normal(size=(count, 8)) * 100], axis=1)
    errors = np.square(RNG.normal(scale=0.1 + shift / 10, size=(count, 16))).mean(axis=1)
    return Normals({"embedding": points.astype(np.float32), "features": features.astype(np.float32)}, errors)


@pytest.mark.parametrize(
    "distances", [DISTANCES, ALL, ("embedding.neighbours",), ("embedding.local", "embedding.neighbours")]
)
def test_false_alarms_on_fresh_normals_are_at_the_stated_rate_and_strangers_are_seen(
    distances: tuple[str, ...],
) -> None:
    calibration, arrays = fit(normals(4000), normals(4000), distances, 0.02, blocks=(400, 8))
    scorer = AnomalyScorer(calibration, arrays, {"embedding": 6, "features": 408})
    fresh = normals(20_000)
    found = scorer.score(fresh.encoded, fresh.errors)
    assert 0.013 < np.mean([score.anomalous for score in found]) < 0.027
    unusual = normals(500, shift=5.0)
    assert np.mean([score.anomalous for score in scorer.score(unusual.encoded, unusual.errors)]) > 0.99
    assert calibration.calibrated_on == 4000
    assert calibration.quantiles["0.5"] < calibration.quantiles["0.99"]
    assert all(score.anomalous == (score.score > calibration.threshold) for score in found)
    assert [distance.name for distance in calibration.distances] == list(distances)
    assert set(found[0].distances) == set(distances)


def test_a_score_may_be_the_reconstruction_alone() -> None:
    calibration, arrays = fit(Normals({}, normals(400).errors), Normals({}, normals(200).errors), DISTANCES[:1], 0.05)
    scorer = AnomalyScorer(calibration, arrays, {})
    unusual = normals(100, shift=5.0).errors
    assert np.mean([score.anomalous for score in scorer.score({}, unusual)]) > 0.9


def test_blocks_count_alike_however_large_their_values() -> None:
    """Strangers differ in the small block alone, which the large one would drown."""
    unusual = normals(300)
    unusual.encoded["features"][:, :400] += 4
    seen = []
    for blocks in ((400, 8), ()):
        calibration, arrays = fit(normals(2000), normals(1000), ("features.neighbours",), 0.05, blocks)
        scorer = AnomalyScorer(calibration, arrays, {"features": 408})
        seen.append(np.mean([s.anomalous for s in scorer.score({"features": unusual.encoded["features"]}, None)]))
    assert seen[0] > seen[1]


def test_copies_of_a_normal_do_not_divide_by_nothing() -> None:
    train, held_out = normals(500), normals(500)
    train.encoded["embedding"][:100] = 0
    calibration, arrays = fit(train, held_out, ("embedding.local",), 0.05)
    assert (arrays["embedding.reach"] > 0).all()
    scores = AnomalyScorer(calibration, arrays, {"embedding": 6}).score(train.encoded, None)
    assert np.isfinite([score.score for score in scores]).all()
    for wrong in (arrays["embedding.reach"][1:], -arrays["embedding.reach"]):
        with pytest.raises(ValueError, match=r"array embedding\.reach: not a number above zero for each"):
            AnomalyScorer(calibration, {**arrays, "embedding.reach": wrong}, {"embedding": 6})


def test_what_cannot_be_calibrated_says_why() -> None:
    with pytest.raises(TrainingError, match="at least 999"):
        fit(normals(100), normals(100), DISTANCES, 0.001)
    flat = normals(100)
    flat.encoded["embedding"][:] = 1
    with pytest.raises(TrainingError, match="embedding has no variance"):
        fit(flat, normals(200), DISTANCES, 0.05)
    perfect = Normals(normals(100).encoded, np.zeros(100))
    with pytest.raises(TrainingError, match="all normals have the same reconstruction distance"):
        fit(perfect, normals(200), DISTANCES, 0.05)
    with pytest.raises(TrainingError, match="too few"):
        fit(normals(3), normals(200), DISTANCES, 0.05)
