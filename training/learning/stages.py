"""From material to weights: pretraining, labels, decoder; each stage goes on where an interrupted run left it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from app.bundle.manifest import Weights
from training import ranks
from training.data.material import Material
from training.errors import TrainingError, in_short
from training.learning.adapt import adapt
from training.learning.decoder import finetune_decoder
from training.learning.finetune import METHODS
from training.learning.pretrain import pretrain
from training.learning.workshop import begun_with, workshop
from training.networks import Autoencoder, build, weights
from training.networks import head as heads
from training.networks.head import Head
from training.progress import say
from training.recipe import AdaptMode, LabelMode, Recipe

WEIGHTS_FILE = "weights.pt"
BEGUN_FILE = "published.json"  # the published weights that the network began with


@dataclass(frozen=True)
class Learnt:
    net: Autoencoder
    head: Head | None
    weights: Weights | None = None  # that others published, and the network began with


def learn(recipe: Recipe, material: Material, folder: Path, only_pretrain: bool = False) -> Learnt:
    """Train all stages and keep the weights in `folder`; stages that are finished there are not repeated."""
    mode = recipe.transfer
    shop = workshop(recipe, material.spec.shape, folder, mode.untrained)
    net = shop.net
    published = ranks.from_first(lambda: _recorded(weights.facts(begun_with(recipe, mode.untrained)), folder))
    if shop.precision != recipe.precision:
        say(f"note: this CPU has no {recipe.precision}: computed in {shop.precision}")
    if mode.pretrains and (recipe.pretrain.epochs or only_pretrain):
        pretrain(shop, material.source_train, material.source_validation, recipe.pretrain)
    if only_pretrain:
        return Learnt(net, None)
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
    return Learnt(net, head, _begun_with(folder))
