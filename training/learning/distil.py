"""Distillation: a smaller network learns the features that a published backbone has of images, without labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.material import Material
from training.learning.augment import augmented, erased
from training.learning.fit import Task, fit
from training.learning.inference import LEAST_SPREAD, mean_loss, moments
from training.learning.teacher import Teacher
from training.learning.views import drawn_rows, with_views
from training.learning.workshop import Workshop
from training.progress import say
from training.recipe import Augment, DistilMode, Stage

_STAGE = "distil"


def distil(workshop: Workshop, material: Material, stage: Stage, mode: DistilMode) -> None:
    """Train the encoder on the source's and the target's training images.

    The code goes through a linear projection, which is thrown away, to the teacher's features; those are computed once
    for each image, and view of it.
    """
    sets = [material.source_train] if material.one_domain else [material.source_train, material.train]
    count, net, validation = sum(map(len, sets)), workshop.net, material.validation
    teacher = Teacher(mode, workshop.device)
    # The validation images are few: they tell the number of features.
    validation_points = teacher.features(validation.images)
    projection = nn.Linear(net.latent, validation_points.shape[1]).to(workshop.device)
    learning = {"encoder": net.encoder, "projection": projection}
    if workshop.checkpoints.finished(_STAGE, learning):
        say(f"{_STAGE}: done before")
        return
    images = with_views(workshop, [part.images for part in sets], stage.augment, mode.views)
    points = teacher.features(images)
    mean, std = (each.to(workshop.device) for each in moments(points, LEAST_SPREAD))
    fresh = Augment() if mode.views else stage.augment  # views are what the teacher saw

    def loss(batch: Tensor) -> Tensor:
        rows = drawn_rows(batch, count, mode.views).numpy()
        return loss_of(augmented(workshop.unit(images[rows]), fresh), torch.from_numpy(points[rows]), fresh)

    def held_out(batch: Tensor) -> Tensor:
        rows = batch.numpy()
        return loss_of(workshop.unit(validation.images[rows]), torch.from_numpy(validation_points[rows]), Augment())

    def loss_of(shown: Tensor, goal: Tensor, augment: Augment) -> Tensor:
        with workshop.autocast():
            found = projection(net.encode(erased(shown, augment)).code)
        return difference(found.float(), (goal.to(workshop.device) - mean) / std)

    task = Task(
        _STAGE,
        learning,
        loss=lambda batch, _: loss(batch),
        images=count,
        validate=lambda: mean_loss(held_out, len(validation)),
    )
    fit(task, stage, workshop.journal, workshop.checkpoints)


def difference(found: Tensor, goal: Tensor) -> Tensor:
    """(N, D) and standardised features (N, D) → the mean of 1 - cosine, plus the mean squared error."""
    return (1 - F.cosine_similarity(found, goal, dim=1)).mean() + F.mse_loss(found, goal)
