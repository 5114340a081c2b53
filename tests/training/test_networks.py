import pytest
import torch

from training.errors import TrainingError
from training.networks import build


@pytest.mark.parametrize("channels", [1, 3])
def test_the_seeds_shapes(channels: int) -> None:
    """28 → 14 → 7 → 4, a code of 8×4×4, and back to 28×28."""
    net = build("conv-seed", (28, 28, channels))
    image = torch.rand(2, channels, 28, 28)
    stages, sizes = image, []
    for layer in net.encoder.layers:  # type: ignore[union-attr]
        stages = layer(stages)
        if isinstance(layer, torch.nn.MaxPool2d):
            sizes.append(tuple(stages.shape[1:]))
    assert sizes == [(16, 14, 14), (8, 7, 7), (8, 4, 4)]
    code = net.encoder(image)
    assert code.shape == (2, net.latent_size) == (2, 128)
    assert net.decoder(code).shape == image.shape


def test_another_size_is_refused_with_the_mend() -> None:
    with pytest.raises(TrainingError, match="takes 28×28 images, not 64×64"):
        build("conv-seed", (64, 64, 1))


def test_an_unknown_network_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no network"):
        build("nothing", (28, 28, 1))
