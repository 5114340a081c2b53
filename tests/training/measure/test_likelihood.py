import math

import numpy as np
import pytest
import torch

from training.data.imageset import ImageSet
from training.learning.objectives import penalty, reconstruction, sample
from training.measure.likelihood import bound, log_likelihood, metrics
from training.networks.autoencoder import Autoencoder, build
from training.recipe import Network, Objective

SHAPE, PIXELS = (6, 6, 1), 36


@pytest.fixture
def net() -> Autoencoder:
    torch.manual_seed(0)
    made = build(Network(kind="dense", hidden=16, latent=1, variational=True), SHAPE)
    made.encoder.eval()
    made.decoder.eval()
    for weight in made.decoder.parameters():
        weight.data *= 4  # so that the code matters
    return made


def exact(net: Autoencoder, objective: Objective, images: torch.Tensor) -> torch.Tensor:
    """(N,) -ln ∫ p(x | z) p(z) dz over the one number of the code, by the trapezoid rule."""
    z = torch.linspace(-6, 6, 4001)[:, None]
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0])
    found = []
    for image in images:
        joint = log_likelihood(objective, net.decoder(z), image.expand(len(z), *image.shape)) + prior
        found.append(-(joint.logsumexp(0) + math.log(12 / 4000)))
    return torch.stack(found)


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_the_bound_comes_from_above_to_the_integral_over_the_code(net: Autoencoder, loss: str) -> None:
    objective, images = Objective(loss=loss), torch.rand(5, 1, 6, 6)
    with torch.no_grad():
        truth = exact(net, objective, images)
        elbo, weighted = bound(net, objective, images, draws=20_000)
        few = torch.stack([bound(net, objective, images, draws=3).weighted for _ in range(400)]).mean(0)
    assert torch.allclose(weighted, truth, atol=0.05)
    assert (few > truth).all(), "a bound with few draws is looser"
    assert (elbo > few).all(), "that of one draw the loosest"


def test_the_elbo_is_what_training_minimises(net: Autoencoder) -> None:
    objective, images = Objective(), torch.rand(8, 1, 6, 6)
    with torch.no_grad():
        encoded = net.encode(images)
        drawn = [reconstruction(objective, net.decoder(sample(encoded)), images).item() for _ in range(2000)]
        minimised = PIXELS * (np.mean(drawn) + penalty(objective, encoded, 1.0, PIXELS).item())
        elbo = bound(net, objective, images, draws=2000).elbo.mean().item()
    assert elbo == pytest.approx(minimised, rel=1e-2)


def test_with_one_draw_the_bound_is_the_elbo(net: Autoencoder) -> None:
    with torch.no_grad():
        elbo, weighted = bound(net, Objective(), torch.rand(4, 1, 6, 6), draws=1)
    assert torch.allclose(elbo, weighted)


def test_a_pixels_likelihood_is_that_of_its_distribution() -> None:
    logits, images = torch.randn(3, 1, 2, 2), torch.randint(0, 2, (3, 1, 2, 2)).float()
    coins = torch.distributions.Bernoulli(logits=logits).log_prob(images).sum((1, 2, 3))
    assert torch.allclose(log_likelihood(Objective(loss="bce"), logits, images), coins, atol=1e-5)
    normal = torch.distributions.Normal(logits.sigmoid(), math.sqrt(0.5)).log_prob(images).sum((1, 2, 3))
    assert torch.allclose(log_likelihood(Objective(loss="mse"), logits, images), normal, atol=1e-5)


def test_the_metrics_are_means_and_draw_alike_each_time(net: Autoencoder) -> None:
    images = np.random.default_rng(0).integers(0, 256, (37, *SHAPE), dtype=np.uint8)
    data = ImageSet(images, np.array([], np.int64), ())
    state = torch.random.get_rng_state()
    elbo, weighted = metrics(net, Objective(), data)
    assert torch.equal(torch.random.get_rng_state(), state), "what is trained afterwards is drawn as without it"
    assert (elbo.name, weighted.name) == ("negative_elbo", "nll_bound")
    assert elbo.images == weighted.images == 37
    assert "32 draws" in weighted.how
    assert metrics(net, Objective(), data) == [elbo, weighted]
    with torch.no_grad():
        unit = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        truth = exact(net, Objective(), unit).mean().item()
    assert truth <= weighted.value + 0.01
    assert weighted.value < elbo.value
