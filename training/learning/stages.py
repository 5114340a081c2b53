"""The stages of a run in their order: pretraining, transfer by the recipe's mode, decoder. Finished ones are skipped.

METHODS says which function transfers by labels in which mode: finetune.py, linear.py, gradual.py or episodes.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.bundle.manifest import Weights
from training import ranks
from training.data.imageset import ImageSet
from training.data.material import Material
from training.errors import TrainingError, in_short
from training.learning.adapt import adapt
from training.learning.decoder import finetune_decoder
from training.learning.distil import distil
from training.learning.episodes import episodic
from training.learning.finetune import distilled, finetune, full, multitask, train_head
from training.learning.gradual import gradual
from training.learning.linear import train_linear
from training.learning.paste import learn_to_find
from training.learning.pretrain import pretrain
from training.learning.workshop import Workshop, begun_with, open_workshop
from training.networks import head as heads
from training.networks import weights
from training.networks.autoencoder import Autoencoder, build
from training.networks.head import Head
from training.progress import say
from training.recipe import AdaptMode, DistilMode, PasteMode, Recipe

WEIGHTS_FILE = "weights.pt"
BEGUN_FILE = "published.json"  # the published weights that the network began with

# Mode → what learns the target's labels; the last argument is the mode's settings.
METHODS: dict[str, Callable[[Workshop, ImageSet, ImageSet, Any], Head]] = {
    "head": train_head,
    "linear": train_linear,
    "random-frozen": train_head,
    "full": full,
    "distil": distilled,
    "scratch": finetune,
    "multitask": multitask,
    "gradual": gradual,
    "episodic": episodic,
}


@dataclass(frozen=True)
class Learnt:
    net: Autoencoder
    head: Head | None
    weights: Weights | None = None  # that others published, and the network began with


def learn(recipe: Recipe, material: Material, folder: Path, only_pretrain: bool = False) -> Learnt:
    """Train all stages and keep the weights in `folder`; stages that are finished there are not repeated."""
    mode = recipe.transfer
    workshop = open_workshop(recipe, material.spec.shape, folder, mode.untrained)
    net = workshop.net
    published = ranks.from_first(lambda: _recorded(weights.facts(begun_with(recipe, mode.untrained)), folder))
    if recipe.precision == "bf16" and workshop.precision != "bf16":
        say(f"note: {recipe.network.name} is no faster in bf16 on this machine: computed in fp32")
    if mode.pretrains and (recipe.pretrain.epochs or only_pretrain):
        pretrain(workshop, material.source_train, material.source_validation, recipe.pretrain)
    if only_pretrain:
        return Learnt(net, None)
    if isinstance(mode, DistilMode):
        distil(workshop, material, recipe.pretrain, mode)
    train, validation = material.train, material.validation
    head: Head | None = None
    if isinstance(mode, PasteMode):
        learn_to_find(workshop, material, recipe)
    elif isinstance(mode, AdaptMode):
        head = adapt(workshop, material.source_train, held_out=material.source_validation, target=train, transfer=mode)
    elif mode.mode in METHODS:
        head = METHODS[mode.mode](workshop, train, validation, mode)
    final: dict[str, nn.Module] = {"encoder": net.encoder}
    if recipe.decoder.epochs:
        finetune_decoder(workshop, train, validation, recipe.decoder)
        final["decoder"] = net.decoder
    if head is not None:
        final["head"] = head
    net.pool.cpu()
    workshop.checkpoints.write(
        folder / WEIGHTS_FILE, {name: module.cpu().state_dict() for name, module in final.items()}
    )
    return Learnt(net, head, published)


def _recorded(found: Weights | None, folder: Path) -> Weights | None:
    """Kept in the run's folder. A run that goes on must have the weights that it began with."""
    path = folder / BEGUN_FILE
    if not path.is_file():
        if found is not None:
            path.write_text(found.model_dump_json(indent=2) + "\n")
        return found
    before = _begun_with(folder)
    if before is not None and (found is None or found.sha256 != before.sha256):
        now = "no published weights" if found is None else f"SHA-256 {found.sha256[:12]}…"
        raise TrainingError(
            f"{folder}: the run began with {before.file} of SHA-256 {before.sha256[:12]}…, and now finds {now}: "
            "restore that file, or start a new run"
        )
    return before


def _begun_with(folder: Path) -> Weights | None:
    path = folder / BEGUN_FILE
    try:
        return Weights.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValueError:
        raise TrainingError(
            f"{path}: damaged, so it is not known what the network began with: start a new run"
        ) from None


def load_learnt(recipe: Recipe, shape: tuple[int, int, int], folder: Path) -> Learnt:
    """The weights of a finished run."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise TrainingError(
            f"{folder}: not trained to its end; resume it with graft-train transfer RECIPE --run {folder} --resume"
        )
    net = build(recipe.network.model_copy(update={"weights": None}), shape, recipe.members)
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
    return Learnt(net, head, _begun_with(folder))
