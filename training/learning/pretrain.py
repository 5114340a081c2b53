"""Pretraining: encoder and decoder learn a source's images, without their labels."""

import torch
from torch import Tensor, nn

from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.learning.augment import augmented, erased
from training.learning.fit import Task, fit
from training.learning.inference import mean_loss
from training.learning.objectives import pretraining_loss, projection
from training.learning.workshop import Workshop
from training.recipe import Augment, Stage


def pretrain(workshop: Workshop, train: ImageSet, validation: ImageSet, stage: Stage) -> None:
    """Train encoder and decoder by the recipe's objective, on images alone."""
    learning: dict[str, nn.Module] = {"encoder": workshop.net.encoder, "decoder": workshop.net.decoder}
    projector = None
    if workshop.objective.contrast:
        if len(validation) < 2:
            raise TrainingError(f"{len(validation)} validation image: contrast compares images, and needs two")
        projector = learning["projection"] = projection(workshop.net.latent).to(workshop.device)

    def loss(data: ImageSet, batch: Tensor, augment: Augment, progress: float) -> Tensor:
        images = workshop.unit(data.images[batch.numpy()])
        if projector is None:
            images = augmented(images, augment)
        else:
            images = torch.cat([augmented(images, augment) for _ in range(2)])
        with workshop.autocast():
            return pretraining_loss(
                workshop.net,
                workshop.objective,
                images,
                shown=erased(images, augment),
                progress=progress,
                projector=projector,
            )

    def held_out(batch: Tensor) -> Tensor:
        if projector is None:
            return loss(validation, batch, Augment(), 1.0)
        with torch.random.fork_rng():  # the same views after every epoch; training's own random numbers are untouched
            torch.manual_seed(0)
            return loss(validation, batch, stage.augment, 1.0)

    task = Task(
        "pretrain",
        learning,
        loss=lambda batch, progress: loss(train, batch, stage.augment, progress),
        images=len(train),
        validate=lambda: mean_loss(held_out, len(validation)),
    )
    fit(task, stage, workshop.journal, workshop.checkpoints)
