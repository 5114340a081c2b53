import pytest

from training.score.distances import tensors

ALL = ("reconstruction", "embedding.mahalanobis", "features.residual", "features.neighbours", "features.mahalanobis")


def test_a_distance_that_is_not_known_is_named() -> None:
    assert tensors(ALL) == {"embedding", "features"}
    for wrong in ("likelihood", "embedding", "pixels.neighbours", "features.distance", "embedding.reconstruction"):
        with pytest.raises(ValueError, match=f"^{wrong}: reconstruction, patches, or thumbnail, embedding or features"):
            tensors((wrong,))
