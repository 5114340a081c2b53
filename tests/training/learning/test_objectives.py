import math

import pytest
import torch

from training.learning.objectives import (
    contrast,
    corrupt,
    penalty,
    pretraining_loss,
    projection,
    reconstruction,
    sample,
)
from training.networks.autoencoder import build
from training.networks.encoded import Encoded
from training.recipe import Network, Objective

CODE = torch.tensor([[1.0, -3.0], [0.0, 2.0]])


def test_reconstruction_is_the_mean_over_pixels() -> None:
    logits, images = torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.25)
    assert reconstruction(Objective(loss="bce"), logits, images).item() == pytest.approx(math.log(2))
    assert reconstruction(Objective(loss="mse"), logits, images).item() == pytest.approx(0.25**2)


def test_corruption_is_none_unless_asked_for() -> None:
    images = torch.rand(4, 1, 28, 28)
    assert corrupt(Objective(), images) is images


def test_noise_has_its_spread_and_stays_in_range() -> None:
    torch.manual_seed(0)
    noisy = corrupt(Objective(noise=0.1), torch.full((8, 1, 64, 64), 0.5))
    assert noisy.std().item() == pytest.approx(0.1, rel=0.05)
    assert corrupt(Objective(noise=5), torch.rand(2, 1, 8, 8)).aminmax() == (0, 1)


@pytest.mark.parametrize("side", [28, 30])
def test_masking_blacks_out_whole_patches_in_its_share(side: int) -> None:
    torch.manual_seed(0)
    masked = corrupt(Objective(mask=0.3), torch.ones(64, 3, side, side))
    assert masked.shape == (64, 3, side, side)
    patches = masked[:, :, :28, :28].unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert ((patches.sum(4) == 0) | (patches.sum(4) == 16)).all()
    assert (patches.sum(4) == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(masked[:, 0], masked[:, 2])


def test_l1_is_the_codes_mean_magnitude() -> None:
    assert penalty(Objective(l1=2), Encoded(CODE, []), 1.0, 10).item() == pytest.approx(2 * 1.5)


def test_kl_sparsity_is_nothing_at_the_stated_activity_and_grows_from_there() -> None:
    """The divergence between Bernoulli variables of the wanted and the mean activity."""
    at = torch.tensor([[0.1, 0.05], [0.0, 0.05]])  # a mean of 0.05 each
    assert penalty(Objective(kl=1), Encoded(at, []), 1.0, 10).item() == pytest.approx(0, abs=1e-6)
    half = penalty(Objective(kl=1), Encoded(torch.full((5, 3), 0.5), []), 1.0, 10).item()
    assert half == pytest.approx(0.05 * math.log(0.05 / 0.5) + 0.95 * math.log(0.95 / 0.5), rel=1e-5)


def test_the_divergence_from_the_prior_is_torchs_own_and_warms_up() -> None:
    log_variance = torch.tensor([[0.5, -1.0], [0.0, 0.2]])
    normal = torch.distributions.Normal(CODE, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean().item()
    encoded, objective = Encoded(CODE, [], log_variance), Objective(beta=3, warm_up=0.5)
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        value = penalty(objective, encoded, progress, pixels=784).item()
        assert value == pytest.approx(3 * share * expected / 784, rel=1e-5)
    assert penalty(Objective(warm_up=0), encoded, 0.0, 784).item() == pytest.approx(expected / 784, rel=1e-5)


def test_a_sample_is_drawn_around_the_mean_and_lets_the_gradient_through() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.full((20_000, 1), 2.0, requires_grad=True), torch.full((20_000, 1), math.log(0.25))
    drawn = sample(Encoded(mean, [], log_variance))
    assert drawn.mean().item() == pytest.approx(2, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)
    drawn.sum().backward()
    assert mean.grad is not None
    assert sample(Encoded(CODE, [])) is CODE


def test_a_denoiser_is_asked_for_the_clean_image() -> None:
    """With everything hidden the loss is still against the image."""
    net = build(Network(width=4), (28, 28, 1))
    net.encoder.eval()
    net.decoder.eval()
    images = torch.rand(2, 1, 28, 28)
    torch.manual_seed(1)
    hidden = pretraining_loss(net, Objective(mask=0.99999), images, images, 1.0)
    black = net.decoder(net.encode(torch.zeros_like(images)).code)
    assert hidden.item() == pytest.approx(reconstruction(Objective(), black, images).item(), rel=1e-4)


def test_what_is_erased_is_to_be_drawn_back() -> None:
    """A network that copies what it is shown pays for what was erased there."""
    torch.manual_seed(0)
    net = build(Network(kind="dense", hidden=8, latent=4), (28, 28, 1))
    images = torch.rand(16, 1, 28, 28)
    loss = pretraining_loss(net, Objective(), images, torch.zeros_like(images), 1.0)
    drawn = net.decoder(net.encode(torch.zeros_like(images)).code)
    assert torch.allclose(loss, torch.nn.functional.binary_cross_entropy_with_logits(drawn, images))


def test_contrast_is_the_cross_entropy_of_finding_each_views_other_one() -> None:
    """Two images: a right guess where views agree, chance where all codes are one, and lengths do not count."""
    views = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    together = contrast(torch.cat([views, 5 * views]), temperature=0.5).item()
    assert together == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 2 * math.exp(0))), rel=1e-5)
    apart = contrast(torch.cat([views, views.flip(0)]), temperature=0.5).item()
    assert apart == pytest.approx(-math.log(math.exp(0) / (math.exp(2) + 2 * math.exp(0))), rel=1e-5)
    assert contrast(torch.ones(8, 3), temperature=0.5).item() == pytest.approx(math.log(7), rel=1e-5)


def test_contrast_teaches_codes_to_tell_images_apart() -> None:
    torch.manual_seed(0)
    net, objective = (
        build(Network(kind="dense", hidden=16, latent=8), (8, 8, 1)),
        Objective(reconstruction=0, contrast=1),
    )
    projector = projection(net.latent)
    images = torch.rand(16, 1, 8, 8)
    optimiser = torch.optim.Adam([*net.encoder.parameters(), *projector.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        views = torch.cat([images, (images + 0.05 * torch.randn_like(images)).clamp(0, 1)])
        loss = pretraining_loss(net, objective, views, views, 1.0, projector)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(weight.grad is None for weight in net.decoder.parameters())


def test_reconstruction_and_contrast_are_weighed_against_each_other() -> None:
    torch.manual_seed(0)
    net, views = build(Network(kind="dense", hidden=16, latent=8), (8, 8, 1)), torch.rand(8, 1, 8, 8)
    net.encoder.eval()
    projector = projection(net.latent).eval()

    def loss(**weights: float) -> float:
        return pretraining_loss(net, Objective(**weights), views, views, 1.0, projector).item()  # type: ignore[arg-type]

    drawn, output = loss(reconstruction=1, contrast=0), loss(reconstruction=0, contrast=1)
    assert loss(reconstruction=2, contrast=3) == pytest.approx(2 * drawn + 3 * output, rel=1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_what_kl_makes_sparse_is_what_decoder_and_head_take(kind: str) -> None:
    """A unit that the penalty finds quiet is near nothing in the code itself, not only in a sigmoid of it."""
    torch.manual_seed(0)
    network = Network(kind=kind, width=4, hidden=16, latent=8, activation="sigmoid")  # type: ignore[arg-type]
    net, objective, images = build(network, (8, 8, 1)), Objective(kl=3, activity=0.05), torch.rand(64, 1, 8, 8)
    optimiser = torch.optim.Adam(net.encoder.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        loss = penalty(objective, net.encode(images), 1.0, 64)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.01
    code = net.read(images, "embedding")
    assert code.mean(0).tolist() == pytest.approx([0.05] * 8, abs=0.02)
    dense = Encoded(torch.full((64, 8), -3.4) + 0.3 * torch.randn(64, 8), [])
    assert penalty(objective, dense, 1.0, 64).item() > 1, "a dense code that lies low is no sparse one"
