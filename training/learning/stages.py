"""From material to weights: pretraining, labels, decoder; each stage goes on where an interrupted run left it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from training.data.material import Material
from training.errors import TrainingError, in_short
from training.learning.adapt import adapt
from training.learning.decoder import finetune_decoder
from training.learning.distil import distil
from training.learning.finetune import METHODS
from training.learning.pretrain import pretrain
from training.learning.workshop import workshop
from training.networks import Autoencoder, build
from training.networks import head as heads
from training.networks.head import Head
from training.progress import say
from training.recipe import AdaptMode, DistilMode, LabelMode, Recipe

WEIGHTS_FILE = "weights.pt"


@dataclass(frozen=True)
class Learnt:
    net: Autoencoder
    head: Head | None


def learn(recipe: Recipe, material: Material, folder: Path, only_pretrain: bool = False) -> Learnt:
    """Train all stages and keep the weights in `folder`; stages that are finished there are not repeated."""
    mode = recipe.transfer
    shop = workshop(recipe, material.spec.shape, folder, mode.untrained)
    net = shop.net
    if recipe.precision == "bf16" and shop.precision != "bf16":
        say(f"note: {recipe.network.name} is no faster in bf16 on this machine: computed in fp32")
    if mode.pretrains and (recipe.pretrain.epochs or only_pretrain):
        pretrain(shop, material.source_train, material.source_validation, recipe.pretrain)
    if only_pretrain:
        return Learnt(net, None)
    if isinstance(mode, DistilMode):
        distil(shop, material, recipe.pretrain, mode)
    train, validation = material.train, material.validation
    head: Head | None = None
    if isinstance(mode, AdaptMode):
        head = adapt(shop, material.source_train, material.source_validation, train, mode)
    elif isinstance(mode, LabelMode):
        head = METHODS[mode.mode](shop, train, validation, mode)
    final: dict[str, nn.Module] = {"encoder": net.encoder}
    if recipe.decoder.epochs:
        finetune_decoder(shop, train, validation, recipe.decoder)
        final["decoder"] = net.decoder
    if head is not None:
        final["head"] = head
    net.pool.cpu()
    shop.checkpoints.write(folder / WEIGHTS_FILE, {name: module.cpu().state_dict() for name, module in final.items()})
    return Learnt(net, head)


def learnt_before(recipe: Recipe, shape: tuple[int, int, int], folder: Path) -> Learnt:
    """The weights of a finished run."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise TrainingError(
            f"{folder}: not trained to its end; go on with graft-train transfer RECIPE --run {folder} --resume"
        )
    net = build(recipe.network.model_copy(update={"weights": None}), shape)
    try:
        states = torch.load(path, map_location="cpu", weights_only=True)
        net.encoder.load_state_dict(states["encoder"])
        if recipe.decoder.epochs:
            net.decoder.load_state_dict(states["decoder"])
        head = None
        if "head" in states:
            head = heads.like(states["head"])
    except Exception as error:  # pickle, zip and shape errors share no base
        raise TrainingError(f"{path}: cannot be read as weights of this recipe: {in_short(error)}") from None
    return Learnt(net, head)
