import numpy as np
import pytest
import torch

from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.learning.episodes import SYMMETRIES, Episodes, turned
from training.recipe import EpisodicMode
from training.score.prototypes import fit


def some(each: int = 20, classes: int = 4) -> ImageSet:
    labels = np.repeat(np.arange(classes), each)
    return ImageSet(np.zeros((len(labels), 4, 4, 1), np.uint8), labels, tuple("abcdefgh"[:classes]))


def test_an_episode_has_each_class_once_and_no_image_twice() -> None:
    data = some()
    episodes = Episodes(data, EpisodicMode(way=3, shots=2, queries=4))
    torch.manual_seed(0)
    seen = set()
    for _ in range(50):
        indices, turns = episodes.draw()
        assert len(set(indices.tolist())) == episodes.size == 18
        labels = data.labels[indices.numpy()].reshape(3, 6)
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0])) == 3
        assert not turns.any()
        seen |= {tuple(labels[:, 0])}
    assert len(seen) > 10, "any classes, in any order"


def test_with_symmetries_there_are_eight_times_the_classes() -> None:
    data = some(classes=2)
    episodes = Episodes(data, EpisodicMode(way=99, shots=1, queries=1, symmetries=True))
    indices, turns = episodes.draw()
    kinds = {(label, turn) for label, turn in zip(data.labels[indices.numpy()].tolist(), turns.tolist(), strict=True)}
    assert len(kinds) == episodes.way == 2 * SYMMETRIES


def test_the_symmetries_of_a_square_are_eight_and_the_first_is_none() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    found = turned(image.repeat(SYMMETRIES, 1, 1, 1), torch.arange(SYMMETRIES))
    assert torch.equal(found[:1], image)
    assert len({tuple(each.flatten().tolist()) for each in found}) == SYMMETRIES
    assert all(each.sum() == image.sum() and each[0, 1, 1] == 4 for each in found)


def test_the_loss_is_that_of_the_prototypes_that_serve() -> None:
    """What is trained for is what `graft --distance cosine` does."""
    episodes = Episodes(some(), EpisodicMode(way=3, shots=4, queries=2))
    points = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    shots, queries = points[:, :4].flatten(0, 1).numpy(), points[:, 4:].flatten(0, 1).numpy()
    learnt = fit(shots, np.repeat(np.arange(3), 4), "cosine")
    logits = torch.from_numpy(learnt.logits(queries))
    wanted = torch.nn.functional.cross_entropy(logits, torch.arange(3).repeat_interleave(2))
    torch.testing.assert_close(episodes.loss(points.flatten(0, 1)), wanted, rtol=1e-4, atol=1e-4)


def test_a_class_that_cannot_fill_an_episode_is_named() -> None:
    with pytest.raises(TrainingError, match="a has 20 images to learn from or to be judged by; an episode takes 15"):
        Episodes(some(), EpisodicMode(shots=15, queries=6))
    with pytest.raises(TrainingError, match="needs two classes"):
        Episodes(some(classes=1), EpisodicMode())
