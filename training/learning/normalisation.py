"""Batch normalisation: replacing a network's running statistics by those of other images."""

import torch
from torch import nn

from training.data.imageset import ImageSet
from training.learning import distributed
from training.learning.workshop import Workshop

_MOST_IMAGES = 5000  # images

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm


def norms(module: nn.Module) -> list[Norm]:
    return [each for each in module.modules() if isinstance(each, Norm)]


def recompute_statistics(workshop: Workshop, data: ImageSet) -> None:
    """Batch normalisation takes its statistics from these images, as if the network had been trained on them."""
    net = workshop.net
    net.encoder.train()
    batch_norms = norms(net.encoder)
    momenta = [norm.momentum for norm in batch_norms]
    for norm in batch_norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        some = torch.randperm(len(data))[:_MOST_IMAGES]
        for part in torch.split(some, max(2, len(some) // 20)):
            if len(part) > 1:
                net.encode(workshop.unit(data.images[part.numpy()]))
    for norm, momentum in zip(batch_norms, momenta, strict=True):
        norm.momentum = momentum
    distributed.agree({"encoder": net.encoder})  # each rank drew images of its own
    net.encoder.eval()
