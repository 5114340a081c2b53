"""Gradual unfreezing: the head learns first, then one block of the encoder after another joins, from the top down."""

from training.data.imageset import ImageSet
from training.learning.finetune import finetune
from training.learning.workshop import Workshop
from training.networks.head import Head
from training.recipe import GradualMode


def gradual(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: GradualMode) -> Head:
    """Each equal share of the epochs unfreezes the next block down, which learns more slowly than the one above it."""
    names = workshop.net.blocks_read(transfer.reads)[-transfer.thaw :]
    rate_shares = {name: transfer.slower_below ** (len(names) - place) for place, name in enumerate(names)}

    def frozen(progress: float) -> set[str]:
        return set(names[: len(names) - int(progress * (len(names) + 1))])

    return finetune(workshop, train, validation, transfer, blocks=names, rate_shares=rate_shares, frozen=frozen)
