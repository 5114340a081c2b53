"""What every stage of a run shares: the network, where it is computed, and where its progress is written."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from training import ranks
from training.learning import distributed
from training.learning.checkpoint import Checkpoints
from training.learning.journal import JOURNAL_FILE, Journal
from training.networks.autoencoder import Autoencoder, build
from training.recipe import Network, Objective, Recipe

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Workshop:
    """What every stage of a run needs: where to write, and how the network is computed."""

    net: Autoencoder
    objective: Objective
    journal: Journal
    checkpoints: Checkpoints
    device: torch.device
    precision: Literal["fp32", "bf16"]

    def unit(self, images: np.ndarray | Tensor) -> Tensor:
        """(N, H, W, C) uint8 → (N, C, H, W) float in 0…1: the scaling that the exported encoder has inside.

        The memory format stays channels-last, as images are stored: convolutions on a CPU are faster that way.
        """
        return torch.as_tensor(images).to(self.device).permute(0, 3, 1, 2).float() / 255

    def kept_in(self, folder: Path) -> "Workshop":
        """The same network, with journal and checkpoints in another folder."""
        return replace(self, journal=Journal(folder / JOURNAL_FILE), checkpoints=Checkpoints(folder / CHECKPOINTS))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def computed_in(
    precision: Literal["fp32", "bf16", "auto"], device: torch.device, encoder: nn.Module
) -> Literal["fp32", "bf16"]:
    """bf16 where it is asked for and a gain, else fp32.

    A CPU without bf16 instructions takes several times as long with it, as does a GPU that emulates it. On CPUs
    depthwise convolutions gained nothing wherever they were measured: Lite0 took 7 to 50 times as long.
    """
    if precision == "fp32":
        return "fp32"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        faster = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) and not _depthwise(encoder)
    else:
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if faster else "fp32"


def _depthwise(encoder: nn.Module) -> bool:
    return any(isinstance(each, nn.Conv2d) and each.groups > 1 for each in encoder.modules())


def begun_with(recipe: Recipe, untrained: bool) -> Network:
    """Published weights are training too: an untrained network does not load them."""
    return recipe.network.model_copy(update={"weights": None}) if untrained else recipe.network


def open_workshop(recipe: Recipe, shape: tuple[int, int, int], folder: Path, untrained: bool) -> Workshop:
    """A new network by the recipe and its seed, and `folder` to keep its journal and checkpoints in.

    Modules start in evaluation mode: reading images with an untrained network must not change its batch statistics.
    """
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(begun_with(recipe, untrained), shape, recipe.members)
    for part in (net.encoder, net.decoder, net.pool):
        part.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if ranks.count() > 1 and device.type == "cuda":
        for part in (net.encoder, net.decoder):
            distributed.synchronise(part)
    journal, checkpoints = Journal(folder / JOURNAL_FILE), Checkpoints(folder / CHECKPOINTS)
    return Workshop(
        net=net,
        objective=recipe.objective,
        journal=journal,
        checkpoints=checkpoints,
        device=device,
        precision=computed_in(recipe.precision, device, net.encoder),
    )
