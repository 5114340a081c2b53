from pathlib import Path

import numpy as np
import pytest
import torch

from training import recipe
from training.data.imageset import ImageSet
from training.learning.generate import adapted, pretrain, untrained, with_drawn
from training.learning.workshop import Workshop, open_workshop

SHAPE = (8, 8, 1)


def halves(count: int, sides: tuple[str, ...]) -> ImageSet:
    """Of each class as many images: bright on one side, dark on the other, and no two alike."""
    rng = np.random.default_rng(0)
    images, labels = [], np.arange(len(sides)).repeat(count)
    for side in np.array(sides)[labels]:
        image = rng.integers(0, 40, SHAPE)
        image[{"top": np.s_[:4], "bottom": np.s_[4:], "left": np.s_[:, :4], "right": np.s_[:, 4:]}[side]] += 180
        images.append(image)
    return ImageSet(np.array(images, np.uint8), labels, sides)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return open_workshop(recipe.load("dense", []), (28, 28, 1), tmp_path / "source", untrained=True)


@pytest.mark.parametrize("classes", [2, 0])
def test_a_generator_of_one_domain_draws_the_classes_of_another(
    classes: int, workshop: Workshop, tmp_path: Path
) -> None:
    """It may have learnt the source with its labels or without; of the target it has five images a class."""
    torch.manual_seed(0)
    generator = untrained(SHAPE, classes)
    pretrain(workshop, generator, halves(600, ("top", "bottom")))
    target = halves(5, ("left", "right", "top"))
    more = with_drawn(workshop, adapted(workshop.kept_in(tmp_path / "target"), generator, target), target, 20)
    assert len(more) == 15 + 60
    assert np.array_equal(more.images[:15], target.images)
    assert np.array_equal(more.labels, [*np.arange(3).repeat(5), *np.arange(3).repeat(20)])
    drawn = more.images[15:].reshape(3, 20, 8, 8).astype(float)
    assert (drawn[0, :, :, :4].mean((1, 2)) > drawn[0, :, :, 4:].mean((1, 2)) + 80).all()
    assert (drawn[1, :, :, 4:].mean((1, 2)) > drawn[1, :, :, :4].mean((1, 2)) + 80).all()
    assert (drawn[2, :, :4].mean((1, 2)) > drawn[2, :, 4:].mean((1, 2)) + 80).all()
    assert len(np.unique(drawn.reshape(60, -1), axis=0)) == 60, "each draw is another"


def test_the_loss_is_the_bound_and_the_class_reaches_the_decoder_alone() -> None:
    torch.manual_seed(0)
    generator = untrained(SHAPE, 2)
    generator.encoder.log_variance.weight.data.zero_()  # type: ignore[union-attr]
    generator.encoder.log_variance.bias.data.fill_(-60)  # type: ignore[union-attr]
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0, 1])
    encoded = generator.encoder(images)
    mean, log_variance = encoded.code, encoded.log_variance
    logits = generator.decoder(torch.cat([mean, torch.eye(2)[labels]], dim=1))  # the draw is the mean itself
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, images) + divergence / 64
    assert generator.loss(images, labels, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert generator.loss(images, 1 - labels, 1.0).item() != pytest.approx(expected.item(), rel=1e-5)


def test_what_is_drawn_are_images_as_files_hold_them() -> None:
    drawn = untrained((6, 4, 3), 5).draw(torch.randn(3, 16), torch.tensor([4, 0, 2]))
    assert (drawn.shape, drawn.dtype) == ((3, 6, 4, 3), torch.uint8)
