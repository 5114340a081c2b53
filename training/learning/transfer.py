"""Pretraining on a source, and the ways to bring what was learnt to a target."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import ranks
from training.data.imageset import ImageSet
from training.data.storage import Rows, chunks, shared
from training.errors import TrainingError
from training.learning import distributed
from training.learning.augment import augmented, erased
from training.learning.checkpoint import Checkpoints
from training.learning.episodes import Episodes, turned
from training.learning.fit import Journal, fit
from training.learning.objectives import pretraining_loss, projection, reconstruction, sample
from training.networks import Autoencoder, Encoded, build
from training.networks import head as heads
from training.networks.head import Head
from training.recipe import Augment, Objective, Recipe, Stage, Transfer

JOURNAL_FILE, CHECKPOINTS = "metrics.jsonl", "checkpoints"
_TO_SETTLE_BY = 5000  # images
_EPISODES = 50  # by which the encoder is judged after each epoch
_BATCH = 1024  # where nothing is learnt, so that its size is only a matter of memory


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

        The channels stay last in memory, as they lie in the file: convolutions on a CPU like that.
        """
        return torch.as_tensor(images).to(self.device).permute(0, 3, 1, 2).float() / 255

    def kept_in(self, folder: Path) -> "Workshop":
        """The same network, as it is, its journal and checkpoints elsewhere."""
        return replace(self, journal=Journal(folder / JOURNAL_FILE), checkpoints=Checkpoints(folder / CHECKPOINTS))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def computed_in(precision: Literal["fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """What the recipe asks for; fp32 on a CPU that has no bf16 of its own, where it would take twice as long."""
    if precision == "bf16" and device.type == "cpu":
        able = torch.cpu.get_capabilities()
        if not any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            return "fp32"
    return precision


def workshop(recipe: Recipe, shape: tuple[int, int, int], folder: Path, untrained: bool) -> Workshop:
    """A new network by the recipe and its seed, and `folder` to keep its journal and checkpoints in.

    What is not trained is read as it stands: normalisation must not take its statistics from what it reads.
    """
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Weights of others are training too: a network that is to have none has none.
    network = recipe.network.model_copy(update={"weights": None}) if untrained else recipe.network
    net = build(network, shape)
    for part in (net.encoder, net.decoder, net.pool):
        part.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    journal, checkpoints = Journal(folder / JOURNAL_FILE), Checkpoints(folder / CHECKPOINTS)
    return Workshop(net, recipe.objective, journal, checkpoints, device, computed_in(recipe.precision, device))


def in_batches(function: Callable[[Tensor], Tensor], rows: np.ndarray | Rows) -> np.ndarray:
    """(N, …) → (N, D) float32 of the function over all rows, nothing learnt; a machine's ranks share the work."""

    def of(part: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(part)).float().cpu().numpy()

    place, places = ranks.here()
    with torch.no_grad(), shared((len(rows), *of(rows[:1]).shape[1:]), np.float32) as found:
        for start in range(place * _BATCH, len(rows), places * _BATCH):
            found[start : start + _BATCH] = of(rows[start : start + _BATCH])
    return found


def mean_loss(loss: Callable[[Tensor], Tensor], rows: int) -> float:
    """Of a loss that takes the indices of some rows; each rank has some of the batches."""
    mine = torch.split(torch.arange(rows), _BATCH)[ranks.rank() :: ranks.count()]
    return distributed.mean(sum(loss(part).item() * len(part) for part in mine)) * ranks.count() / rows


def pretrain(shop: Workshop, train: ImageSet, validation: ImageSet, stage: Stage) -> None:
    """Encoder and decoder, by what the objective asks of the source; its labels are not looked at."""
    learning: dict[str, nn.Module] = {"encoder": shop.net.encoder, "decoder": shop.net.decoder}
    projector = None
    if shop.objective.contrast:
        if len(validation) < 2:
            raise TrainingError(f"{len(validation)} validation image has no other to be told from: contrast needs two")
        projector = learning["projection"] = projection(shop.net.latent).to(shop.device)

    def loss(data: ImageSet, batch: Tensor, augment: Augment, progress: float) -> Tensor:
        images = shop.unit(data.images[batch.numpy()])
        if projector is None:
            images = augmented(images, augment)
        else:
            images = torch.cat([augmented(images, augment) for _ in range(2)])
        with shop.autocast():
            return pretraining_loss(shop.net, shop.objective, images, erased(images, augment), progress, projector)

    def held_out(batch: Tensor) -> Tensor:
        if projector is None:
            return loss(validation, batch, Augment(), 1.0)
        with torch.random.fork_rng():  # the same views after every epoch, and training draws what it would have drawn
            torch.manual_seed(0)
            return loss(validation, batch, stage.augment, 1.0)

    fit(
        "pretrain",
        learning,
        lambda batch, progress: loss(train, batch, stage.augment, progress),
        len(train),
        stage,
        shop.journal,
        shop.checkpoints,
        lambda: mean_loss(held_out, len(validation)),
    )


def read(shop: Workshop, data: ImageSet, tensor: str) -> np.ndarray:
    """(N, D) float32 of the encoder as it stands."""
    return in_batches(lambda images: shop.net.read(shop.unit(images), tensor), data.images)


def settle(shop: Workshop, data: ImageSet) -> None:
    """Batch normalisation takes its statistics from these images, as if the network had been trained on them."""
    net = shop.net
    net.encoder.train()
    norms = [module for module in net.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        some = torch.randperm(len(data))[:_TO_SETTLE_BY]
        for part in torch.split(some, max(2, len(some) // 20)):
            if len(part) > 1:
                net.encode(shop.unit(data.images[part.numpy()]))
    for norm in norms:
        norm.momentum = 0.1
    net.encoder.eval()


def accuracy_of(net: Autoencoder, head: Head, tensor: str, data: ImageSet) -> float:
    """In torch, as trained; what is exported is held to it."""

    def logits(images: Tensor) -> Tensor:
        return head(net.read(images.permute(0, 3, 1, 2).float() / 255, tensor))  # type: ignore[no-any-return]

    for module in (net.encoder, net.pool, head):
        module.cpu().eval()
    return float(np.mean(in_batches(logits, data.images).argmax(axis=1) == data.labels))


def _moments(points: np.ndarray) -> tuple[Tensor, Tensor]:
    """(D,) mean and standard deviation, a part at a time."""
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in chunks(points)) / len(points)
    variance = sum(np.square(part - mean).sum(axis=0, dtype=np.float64) for part in chunks(points)) / len(points)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float().clamp_min(1e-6)


def learn_labels(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: Transfer) -> Head:
    """The head, and as much of the encoder as the mode says."""
    match transfer.mode:
        case "head" | "random-frozen":
            return train_head(shop, train, validation, transfer)
        case "full" | "scratch":
            return finetune(shop, train, validation, transfer, list(shop.net.blocks()), reconstruct=0.0)
        case "multitask":
            return finetune(shop, train, validation, transfer, list(shop.net.blocks()), transfer.reconstruction)
        case "gradual":
            return gradual(shop, train, validation, transfer)
        case "episodic":
            learn_to_learn(shop, train, validation, transfer)
            return train_head(shop, train, validation, transfer)
    raise AssertionError(transfer.mode)


def train_head(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: Transfer) -> Head:
    """A classifier on what the frozen encoder gives; it learns on standardised input, and is folded back."""
    seen, held = read(shop, train, transfer.reads), read(shop, validation, transfer.reads)
    mean, std = _moments(seen)
    labels, held_labels = torch.from_numpy(train.labels), torch.from_numpy(validation.labels)
    weights = class_weights(train) if transfer.class_weights else None
    head = heads.make(seen.shape[1], len(train.classes), transfer.hidden)

    def loss(points: np.ndarray, truth: Tensor, batch: Tensor, smoothing: float) -> Tensor:
        standardised = (torch.from_numpy(points[batch.numpy()]) - mean) / std
        return F.cross_entropy(head(standardised), truth[batch], weights, label_smoothing=smoothing)

    fit(
        "head",
        {"head": head},
        lambda batch, _: loss(seen, labels, batch, transfer.smoothing),
        len(seen),
        transfer,
        shop.journal,
        shop.checkpoints,
        lambda: mean_loss(lambda batch: loss(held, held_labels, batch, 0.0), len(held)),
    )
    with torch.no_grad():
        first = heads.reading(head)
        first.bias.sub_(first.weight @ (mean / std))
        first.weight.div_(std)
    return head


def gradual(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: Transfer) -> Head:
    """From the top down: the head, then in each equal share of the epochs a block more, each slower than the last."""
    names = shop.net.blocks_read(transfer.reads)[-transfer.thaw :]
    slower = {name: transfer.slower_below ** (len(names) - place) for place, name in enumerate(names)}

    def still_frozen(progress: float) -> set[str]:
        return set(names[: len(names) - int(progress * (len(names) + 1))])

    return finetune(shop, train, validation, transfer, names, 0.0, slower, still_frozen)


def finetune(
    shop: Workshop,
    train: ImageSet,
    validation: ImageSet,
    transfer: Transfer,
    blocks: list[str],
    reconstruct: float,
    slower: dict[str, float] | None = None,
    frozen: Callable[[float], set[str]] = lambda _: set(),
) -> Head:
    """Head and blocks together; where `reconstruct` is not nothing the decoder too, its loss weighted so."""
    net = shop.net
    size = net.latent if transfer.reads == "embedding" else net.pool.size
    head = heads.make(size, len(train.classes), transfer.hidden).to(shop.device)
    weights = class_weights(train).to(shop.device) if transfer.class_weights else None

    def loss(data: ImageSet, batch: Tensor, augment: Augment, smoothing: float) -> Tensor:
        images = augmented(shop.unit(data.images[batch.numpy()]), augment)
        labels = torch.from_numpy(data.labels[batch.numpy()]).to(shop.device)
        with shop.autocast():
            encoded = net.encode(erased(images, augment))
            taken = encoded.code if transfer.reads == "embedding" else net.pool(encoded.maps)
            total = F.cross_entropy(head(taken).float(), labels, weights, label_smoothing=smoothing)
            if reconstruct:
                total = total + reconstruct * reconstruction(shop.objective, net.decoder(encoded.code), images)
            return total

    learning: dict[str, nn.Module] = {name: net.blocks()[name] for name in blocks} | {"head": head}
    for block in net.blocks().values():
        block.requires_grad_(False)  # what learns, `fit` frees
    if reconstruct:
        learning["decoder"] = net.decoder
    fit(
        transfer.mode,
        learning,
        lambda batch, _: loss(train, batch, transfer.augment, transfer.smoothing),
        len(train),
        transfer,
        shop.journal,
        shop.checkpoints,
        lambda: mean_loss(lambda batch: loss(validation, batch, Augment(), 0.0), len(validation)),
        slower,
        frozen,
    )
    for block in net.blocks().values():
        block.requires_grad_(True)
    return head


def learn_to_learn(shop: Workshop, train: ImageSet, validation: ImageSet, transfer: Transfer) -> None:
    """The encoder, by episodes; a validation loss is the mean over the same episodes each time."""
    seen = Episodes(train, transfer)
    held = Episodes(validation, transfer.model_copy(update={"queries": _fitting(validation, transfer)}))

    def loss(data: ImageSet, episodes: Episodes, augment: Augment) -> Tensor:
        indices, turns = episodes.draw()
        images = shop.unit(data.images[indices.numpy()])
        images = augmented(turned(images, turns) if transfer.symmetries else images, augment)
        with shop.autocast():
            return episodes.loss(shop.net.read(erased(images, augment), transfer.reads))

    def held_out() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return sum(loss(validation, held, Augment()).item() for _ in range(_EPISODES)) / _EPISODES

    learning = {name: shop.net.blocks()[name] for name in shop.net.blocks_read(transfer.reads)}
    stage = transfer.model_copy(update={"batch": seen.size})  # an epoch sees as many images as there are
    fit(
        "episodes",
        learning,
        lambda *_: loss(train, seen, transfer.augment),
        len(train),
        stage,
        shop.journal,
        shop.checkpoints,
        held_out,
    )


def _fitting(data: ImageSet, transfer: Transfer) -> int:
    """Queries of a class, as many as the rarest has beside its shots."""
    rarest = int(np.bincount(data.labels, minlength=len(data.classes)).min())
    return max(1, min(transfer.queries, rarest - transfer.shots))


def class_weights(data: ImageSet) -> Tensor:
    """Each class's share of the loss becomes the same: weights inverse to its images, one on average over images."""
    counts = np.bincount(data.labels, minlength=len(data.classes))
    return torch.from_numpy(len(data) / (np.maximum(counts, 1) * len(data.classes))).float()


def finetune_decoder(shop: Workshop, train: ImageSet, validation: ImageSet, stage: Stage) -> None:
    """The decoder learns to draw the target from the frozen encoder's code; of a variational one from its draws."""

    def joined(images: Tensor) -> Tensor:
        """(N, latent), or (N, 2 · latent): the means, then the log variances."""
        code, _, log_variance = shop.net.encode(shop.unit(images))
        return code if log_variance is None else torch.cat([code, log_variance], dim=1)

    seen, held = in_batches(joined, train.images), in_batches(joined, validation.images)

    def loss(codes: np.ndarray, data: ImageSet, batch: Tensor) -> Tensor:
        code, *log_variance = torch.split(torch.from_numpy(codes[batch.numpy()]).to(shop.device), shop.net.latent, 1)
        images = shop.unit(data.images[batch.numpy()])
        with shop.autocast():
            drawn = shop.net.decoder(sample(Encoded(code, [], *log_variance)))
            return reconstruction(shop.objective, drawn, images)

    fit(
        "decoder",
        {"decoder": shop.net.decoder},
        lambda batch, _: loss(seen, train, batch),
        len(seen),
        stage,
        shop.journal,
        shop.checkpoints,
        lambda: mean_loss(lambda batch: loss(held, validation, batch), len(held)),
    )
