import json
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from training import recipe
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.learning.episodes import SYMMETRIES, Episodes, train_encoder, turned
from training.learning.inference import read
from training.learning.journal import JOURNAL_FILE
from training.learning.workshop import open_workshop
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


@pytest.mark.parametrize("blocks", [(), (8, 2), (3, 4, 3)])
def test_the_loss_is_that_of_the_prototypes_that_serve(blocks: tuple[int, ...]) -> None:
    """What is trained for is what `graft --distance cosine` does, where maps of other sizes are joined as well."""
    episodes = Episodes(some(), EpisodicMode(way=3, shots=4, queries=2), blocks)
    points = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 2, 10) + 3
    shots, queries = points[:, :4].flatten(0, 1).numpy(), points[:, 4:].flatten(0, 1).numpy()
    learnt = fit(shots, np.repeat(np.arange(3), 4), "cosine", blocks)
    logits = torch.from_numpy(learnt.logits(queries))
    wanted = torch.nn.functional.cross_entropy(logits, torch.arange(3).repeat_interleave(2))
    torch.testing.assert_close(episodes.loss(points.flatten(0, 1)), wanted, rtol=1e-4, atol=1e-4)


def test_a_map_that_never_varies_gives_a_gradient_all_the_same() -> None:
    episodes = Episodes(some(), EpisodicMode(way=3, shots=4, queries=2), (8, 2))
    points = torch.randn(18, 10, generator=torch.Generator().manual_seed(0))
    points[:, 8:] = 1
    points.requires_grad_()
    episodes.loss(points).backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()
    assert points.grad[:, :8].abs().sum() > 0


@pytest.mark.parametrize("reads", ["features", "embedding"])
def test_an_epoch_is_judged_by_what_grafting_would_make_of_the_encoder(
    reads: Literal["features", "embedding"], tmp_path: Path
) -> None:
    """The validation loss of the journal is that of prototypes which are fitted as graft fits them."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 12)
    images = rng.integers(0, 120, (36, 16, 16, 1)) + 60 * labels[:, None, None, None]
    data = ImageSet(images.astype(np.uint8), labels, ("a", "b", "c"))
    mode = EpisodicMode(way=3, shots=2, queries=3, epochs=1, reads=reads)
    chosen = recipe.load("episodic", ["network.width=4", "network.latent=8", "precision=fp32"])
    workshop = open_workshop(chosen, (16, 16, 1), tmp_path, untrained=True)
    train_encoder(workshop, data, data, mode)
    [line] = [json.loads(line) for line in (tmp_path / JOURNAL_FILE).read_text().splitlines()]
    points = read(workshop, data, reads)
    maps = [math.prod(shape) for shape in workshop.net.pool.shapes] if reads == "features" else []
    torch.manual_seed(0)
    episodes, losses = Episodes(data, mode), []
    for _ in range(50):
        drawn = points[episodes.draw()[0].numpy()].reshape(3, 5, -1)
        learnt = fit(drawn[:, :2].reshape(6, -1), np.repeat(np.arange(3), 2), "cosine", maps)
        logits = torch.from_numpy(learnt.logits(drawn[:, 2:].reshape(9, -1)))
        losses.append(torch.nn.functional.cross_entropy(logits, torch.arange(3).repeat_interleave(3)).item())
    assert line["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_class_that_cannot_fill_an_episode_is_named() -> None:
    with pytest.raises(TrainingError, match="a has 20 images to train or validate on; an episode takes 15"):
        Episodes(some(), EpisodicMode(shots=15, queries=6))
    with pytest.raises(TrainingError, match="needs two classes"):
        Episodes(some(classes=1), EpisodicMode())
