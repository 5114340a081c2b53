"""Fine-tuning the decoder on the codes of an encoder that no longer changes."""

import numpy as np
import torch
from torch import Tensor

from training.data.imageset import ImageSet
from training.learning.fit import Task, fit
from training.learning.inference import in_batches, mean_loss
from training.learning.objectives import reconstruction, sample
from training.learning.workshop import Workshop
from training.networks import Encoded
from training.recipe import Stage


def finetune_decoder(shop: Workshop, train: ImageSet, validation: ImageSet, stage: Stage) -> None:
    """Reconstruct the target's images from the frozen encoder's codes; from samples of a variational code."""

    def joined(images: Tensor) -> Tensor:
        """(N, latent), or (N, 2 · latent): the means, then the log variances."""
        encoded = shop.net.encode(shop.unit(images))
        return encoded.code if encoded.log_variance is None else torch.cat([encoded.code, encoded.log_variance], dim=1)

    seen, held = in_batches(joined, train.images), in_batches(joined, validation.images)

    def loss(codes: np.ndarray, data: ImageSet, batch: Tensor) -> Tensor:
        code, *log_variance = torch.split(torch.from_numpy(codes[batch.numpy()]).to(shop.device), shop.net.latent, 1)
        images = shop.unit(data.images[batch.numpy()])
        with shop.autocast():
            drawn = shop.net.decoder(sample(Encoded(code, [], *log_variance)))
            return reconstruction(shop.objective, drawn, images)

    task = Task(
        "decoder",
        {"decoder": shop.net.decoder},
        loss=lambda batch, _: loss(seen, train, batch),
        images=len(seen),
        validate=lambda: mean_loss(lambda batch: loss(held, validation, batch), len(held)),
    )
    fit(task, stage, shop.journal, shop.checkpoints)
