"""Synthetic labelled examples, drawn by a class-conditional variational autoencoder (Sohn et al. 2015).

It learns p(x | y) = ∫ p(x | z, y) p(z) dz from a source, and is adapted to the few labelled images of a target. What is
minimised is the bound of an image x of class y, as everywhere a mean over its P pixels:

    L(x, y) = R(x, g(z ⊕ y)) + KL(q(z | x) ‖ N(0, 1)) / P,    z ~ q(z | x)

New images of a class are drawn between two labelled ones, because few images leave gaps in the prior:

    x = g((1 - λ) z + λ z' ⊕ y),    z ~ q(z | x₁), z' ~ q(z | x₂), λ ~ U(0, 1)
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.imageset import ImageSet
from training.learning.fit import Task, fit
from training.learning.inference import in_batches
from training.learning.objectives import penalty, reconstruction, sample
from training.learning.workshop import Workshop
from training.networks import dense
from training.networks.encoded import Encoded
from training.recipe import Objective, Stage

_STAGE = Stage(epochs=10)  # of pretraining, and again of adaptation
_HIDDEN, _LATENT = 512, 16
_BOUND = Objective(warm_up=0.2)
_FEWEST = 30 * _STAGE.batch  # images in an epoch of adaptation: a few are repeated
_AT_A_TIME = 1024  # images that are drawn together


@dataclass(frozen=True)
class Generator:
    encoder: dense.Encoder  # x → q(z | x)
    decoder: dense.Decoder  # z ⊕ y → x
    classes: int  # none: it has p(x) alone

    def loss(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """(N, C, H, W) in 0…1 and (N,) → L; its divergence warms up over the share of the steps that is done."""
        encoded = self.encoder(images)
        drawn: Tensor = self.decoder(self._joined(sample(encoded), labels))
        return reconstruction(_BOUND, drawn, images) + penalty(_BOUND, encoded, progress, images[0].numel())

    def draw(self, codes: Tensor, labels: Tensor) -> Tensor:
        """(N, latent), (N,) → (N, H, W, C) uint8."""
        with torch.no_grad():
            images: Tensor = self.decoder(self._joined(codes, labels)).sigmoid()
        return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def _joined(self, codes: Tensor, labels: Tensor) -> Tensor:
        """(N, latent), (N,) → (N, latent + classes)."""
        return torch.cat([codes, F.one_hot(labels, self.classes)], dim=1) if self.classes else codes


def untrained(shape: tuple[int, int, int], classes: int) -> Generator:
    """`shape` is (H, W, C)."""
    encoder = dense.Encoder(shape, _HIDDEN, _LATENT, variational=True)
    return Generator(encoder, dense.Decoder(shape, _HIDDEN, _LATENT + classes), classes)


def pretrain(workshop: Workshop, generator: Generator, source: ImageSet) -> None:
    _learn(workshop, "generator", generator, source)


def adapted(workshop: Workshop, generator: Generator, target: ImageSet) -> Generator:
    """The generator trained further on other classes, which all start with the same weights."""
    made = replace(copy.deepcopy(generator), classes=len(target.classes))
    before = made.decoder.layers[0]
    assert isinstance(before, nn.Linear)
    first = nn.Linear(_LATENT + made.classes, _HIDDEN, device=workshop.device)
    with torch.no_grad():
        of_code, of_class = torch.split(before.weight, [_LATENT, generator.classes], dim=1)
        usual = of_class.sum(dim=1, keepdim=True) / max(1, generator.classes)
        first.weight.copy_(torch.cat([of_code, usual.expand(-1, made.classes)], dim=1))
        first.bias.copy_(before.bias)
    made.decoder.layers[0] = first
    rows = np.resize(np.arange(len(target)), max(len(target), _FEWEST))
    _learn(workshop, "adaptation", made, target.take(rows))
    return made


def with_drawn(workshop: Workshop, generator: Generator, target: ImageSet, each: int) -> ImageSet:
    """The labelled images, and `each` drawn ones of every class."""

    def posterior(images: Tensor) -> Tensor:
        """(N, 2 · latent): the means, then the log variances."""
        code, _, log_variance = generator.encoder(workshop.unit(images))
        return torch.cat([code, log_variance], dim=1)

    mean, log_variance = torch.split(torch.from_numpy(in_batches(posterior, target.images)), _LATENT, dim=1)
    members = [torch.from_numpy(np.flatnonzero(target.labels == label)) for label in range(generator.classes)]
    pairs = torch.cat([own[torch.randint(len(own), (2, each))] for own in members], dim=1)  # (2, classes · each)
    one, other = (sample(Encoded(mean[rows], [], log_variance[rows])) for rows in pairs)
    codes = torch.lerp(one, other, torch.rand(len(one), 1)).to(workshop.device)
    labels = torch.arange(generator.classes).repeat_interleave(each)
    parts = zip(torch.split(codes, _AT_A_TIME), torch.split(labels.to(workshop.device), _AT_A_TIME), strict=True)
    drawn = [generator.draw(*part).cpu().numpy() for part in parts]
    images = np.concatenate([target.images[:], *drawn])
    return ImageSet(images, np.concatenate([target.labels, labels.numpy()]), target.classes)


def _learn(workshop: Workshop, what: str, generator: Generator, data: ImageSet) -> None:
    """The best epoch is chosen by the training images themselves: few labels leave none to hold out."""
    modules: dict[str, nn.Module] = {"encoder": generator.encoder, "decoder": generator.decoder}
    for module in modules.values():
        module.to(workshop.device)
    labels = torch.from_numpy(data.labels if generator.classes else np.zeros(len(data), np.int64)).to(workshop.device)

    def loss(batch: Tensor, progress: float) -> Tensor:
        return generator.loss(workshop.unit(data.images[batch.numpy()]), labels[batch], progress)

    some = torch.arange(min(len(data), 8 * _STAGE.batch))
    task = Task(what, modules, loss=loss, images=len(data), validate=lambda: loss(some, 1.0).item())
    fit(task, _STAGE, workshop.journal, workshop.checkpoints)
