"""Gradual unfreezing: the head learns first, then one block of the encoder after another joins, from the top down."""

from collections.abc import Sequence

from training.data.imageset import ImageSet
from training.learning.finetune import falling_rates, finetune
from training.learning.linear import linear_head
from training.learning.upper import Upper
from training.learning.workshop import Workshop
from training.networks.encoded import Backbone
from training.networks.head import Head
from training.recipe import Augment, GradualMode


def gradual(workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: GradualMode) -> Head:
    """Each equal share of the epochs unfreezes the next block down, which learns more slowly than the one above it.

    In the first share the head learns alone, unless it begins as it would end there.
    """
    names = workshop.net.blocks_read(transfer.reads)[-transfer.thaw :]
    begun = transfer.begin == "linear"

    def still_frozen(progress: float) -> set[str]:
        steps = len(names) + 1 - begun
        return set(names[: len(names) - begun - int(progress * steps)])

    return finetune(
        workshop,
        train,
        validation,
        transfer,
        blocks=names,
        rate_shares=falling_rates(names, transfer.slower_below),
        frozen=still_frozen,
        upper=_upper(workshop, train, validation, transfer, names=names),
        head=linear_head(workshop, train, transfer) if begun else None,
    )


def _upper(
    workshop: Workshop, train: ImageSet, validation: ImageSet, transfer: GradualMode, names: Sequence[str]
) -> Upper | None:
    """The blocks that thaw, where those below need to run only once for each image."""
    start = list(workshop.net.blocks()).index(names[0])
    new_images = not transfer.views and (transfer.augment != Augment() or transfer.mixup > 0 or transfer.cutmix > 0)
    if start == 0 or new_images or not isinstance(workshop.net.encoder, Backbone):
        return None
    return Upper(workshop, start, transfer, train=train, validation=validation)
