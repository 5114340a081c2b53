"""Fine-tuning the decoder on the embeddings of the frozen encoder."""

import numpy as np
import torch
from torch import Tensor

from training.data.imageset import ImageSet
from training.learning.fit import Task, fit
from training.learning.inference import in_batches, mean_loss
from training.learning.objectives import reconstruction, sample
from training.learning.workshop import Workshop
from training.networks.encoded import Encoded
from training.recipe import Stage


def finetune_decoder(workshop: Workshop, train: ImageSet, validation: ImageSet, stage: Stage) -> None:
    """Reconstruct the target's images from their embeddings; of a variational encoder, from samples around them."""

    def joined(images: Tensor) -> Tensor:
        """(N, latent), or (N, 2 · latent): the means, then the log variances."""
        encoded = workshop.net.encode(workshop.unit(images))
        return encoded.code if encoded.log_variance is None else torch.cat([encoded.code, encoded.log_variance], dim=1)

    train_codes, validation_codes = in_batches(joined, train.images), in_batches(joined, validation.images)

    def loss(codes: np.ndarray, data: ImageSet, batch: Tensor) -> Tensor:
        code, *log_variance = torch.split(
            torch.from_numpy(codes[batch.numpy()]).to(workshop.device), workshop.net.latent, 1
        )
        images = workshop.unit(data.images[batch.numpy()])
        with workshop.autocast():
            drawn = workshop.net.decoder(sample(Encoded(code, [], *log_variance)))
            return reconstruction(workshop.objective, drawn, images)

    task = Task(
        "decoder",
        {"decoder": workshop.net.decoder},
        loss=lambda batch, _: loss(train_codes, train, batch),
        images=len(train_codes),
        validate=lambda: mean_loss(lambda batch: loss(validation_codes, validation, batch), len(validation_codes)),
    )
    fit(task, stage, workshop.journal, workshop.checkpoints)
