"""Batches divided among ranks. With one process these functions change nothing."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import ranks
from training.errors import TrainingError

Loss = Callable[[Tensor, float], Tensor]  # (indices of a batch's images, share of the steps done) → their mean loss


def shuffled(images: int) -> Tensor:
    """The same order on all ranks; after it each rank draws its own random numbers, the same again in a resumed run."""
    if ranks.count() > 1:
        torch.set_rng_state(ranks.from_first(torch.get_rng_state))
    order = torch.randperm(images)
    if ranks.rank():
        torch.manual_seed(int(torch.randint(2**62, ())) + ranks.rank())
    return order


def shared_out(modules: dict[str, nn.Module], loss_of: Loss) -> Loss:
    """The loss of this rank's share of a batch: backward() leaves the gradients of the whole batch on all ranks.

    The loss is weighted by the share's size: the mean over ranks is the mean over the batch. Normalisation takes its
    statistics from the whole batch on GPUs, and from each rank's share on CPUs, where torch supports nothing else.
    """
    if ranks.count() == 1:
        return loss_of
    whole = _Whole(modules, loss_of)
    if torch.cuda.is_available():
        synchronise(whole)
    # Static: unused blocks get no gradients. Statistics are averaged at the end of the epoch, not taken from rank 0.
    step = DistributedDataParallel(whole, static_graph=True, forward_sync_buffers=False)

    def share(batch: Tensor, progress: float) -> Tensor:
        if len(batch) < 2 * ranks.count():
            raise TrainingError(f"{len(batch)} images in a batch, {ranks.count()} processes: each needs two at least")
        mine = batch.tensor_split(ranks.count())[ranks.rank()]
        loss: Tensor = step(mine, progress)
        return loss * (len(mine) * ranks.count() / len(batch))

    return share


def synchronise(module: nn.Module) -> None:
    """Batch norms take their statistics from the whole batch, over all ranks; torch supports it on GPUs only.

    Call it on the network, not on a list of its blocks: a norm that is replaced in the list would stay unchanged in the
    network. Norms that are already synchronised are kept.
    """
    for parent in list(module.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]


def mean(value: float) -> float:
    """Over ranks."""
    return sum(ranks.of_all(value)) / ranks.count()


def agree(modules: dict[str, nn.Module]) -> None:
    """Average the running statistics, which each rank has computed from its own share."""
    if ranks.count() == 1:
        return
    for module in modules.values():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= ranks.count()


class _Whole(nn.Module):
    """The modules and their loss as one module, which DistributedDataParallel needs."""

    def __init__(self, modules: dict[str, nn.Module], loss_of: Loss) -> None:
        super().__init__()
        self.modules_that_learn = nn.ModuleList(modules.values())
        self.loss_of = loss_of

    def forward(self, batch: Tensor, progress: float) -> Tensor:
        return self.loss_of(batch, progress)
