"""Runs the network over a whole set, in batches, without training."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from app.bundle.manifest import Graph
from app.bundle.manifest import Tensor as TensorSpec
from app.bundle.session import Session, cpu_limit
from training import ranks
from training.data.imageset import ImageSet
from training.data.storage import Rows, chunks, shared
from training.learning import distributed
from training.learning.workshop import Workshop
from training.measure import encodings
from training.measure.several import share_right
from training.networks.autoencoder import Autoencoder
from training.networks.graph import EncoderGraph, encoder_graph, to_onnx
from training.networks.head import Head
from training.progress import track

_BATCH = 1024  # limited by memory alone
_PIXELS = 1 << 22  # of a batch, where that is fewer images
_AT_ONCE = 16  # images for onnxruntime: more are no faster
# For `moments` of a backbone's features. A few pictures leave some of them at zero: divided by next to nothing, what
# another picture has there would outweigh all the rest.
LEAST_SPREAD = 0.1


def in_batches(
    function: Callable[[Tensor], Tensor], rows: np.ndarray | Rows, what: str = "", size: int | None = None
) -> np.ndarray:
    """(N, …) → (N, D) float32: the function over all rows, without gradients; a machine's ranks share the work.

    `what` names a progress bar; `size` is that of a batch.
    """

    def of(part: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(part)).float().cpu().numpy()

    place, places = ranks.here()
    size = batch_size(rows.shape[1:]) if size is None else size
    starts = range(place * size, len(rows), places * size)
    with torch.no_grad(), shared((len(rows), *of(rows[:1]).shape[1:]), np.float32) as found:
        for start in track(starts, what, len(starts)) if what else starts:
            found[start : start + size] = of(rows[start : start + size])
    return found


def batch_size(shape: tuple[int, ...]) -> int:
    """Of images (H, W, C), or of any other rows."""
    return _BATCH if len(shape) < 3 else max(1, min(_BATCH, _PIXELS // (shape[0] * shape[1])))


def mean_loss(loss: Callable[[Tensor], Tensor], rows: int) -> float:
    """`loss` takes the indices of some rows; each rank computes some of the batches."""
    mine = torch.split(torch.arange(rows), _BATCH)[ranks.rank() :: ranks.count()]
    return distributed.mean(sum(loss(part).item() * len(part) for part in mine)) * ranks.count() / rows


def read(workshop: Workshop, data: ImageSet, tensor: str) -> np.ndarray:
    """(N, D) float32: `embedding` or `features` of every image.

    On a CPU a backbone is read by onnxruntime from the graph that will be served: in a quarter of the time.
    """
    if not workshop.net.published or workshop.device.type != "cpu":
        return in_batches(lambda images: workshop.net.read(workshop.unit(images), tensor), data.images)
    features = tensor == "features"
    height, width, channels = data.images.shape[1:]
    session = _encoder(workshop.net, (height, width, channels), features)
    return _by_onnxruntime(session, ("embedding", "features") if features else ("embedding",), data.images, "features")[
        tensor
    ]


class Reader:
    """(N, D) float32: what a module that takes uint8 (N, H, W, C) gives for every image; on a CPU by onnxruntime."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...], device: torch.device) -> None:
        """`shape` (H, W, C) is that of all images."""
        self._module, self._device = module.to(device).eval(), device
        self._session: Session | None = None
        if device.type != "cpu":
            return
        with torch.no_grad():
            size = module(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        taken = TensorSpec(name="image", dtype="uint8", shape=(-1, *shape))
        given = TensorSpec(name="rows", dtype="float32", shape=(-1, size))
        with torch.random.fork_rng():  # an example is drawn for the export
            self._session = _session(module, Graph(file="rows.onnx", input=taken, outputs=(given,)))

    def __call__(self, images: np.ndarray | Rows, what: str) -> np.ndarray:
        if self._session is None:
            return in_batches(lambda part: self._module(part.to(self._device)), images, what)
        return _by_onnxruntime(self._session, ("rows",), images, what)["rows"]


# The last encoder that was exported, by its weights, the images' shape and its outputs: folds and the published
# network read the same images by the same one, and its export takes seconds.
_last: dict[tuple[bytes, tuple[int, int, int], bool], Session] = {}


def _encoder(net: Autoencoder, shape: tuple[int, int, int], features: bool) -> Session:
    digest = hashlib.blake2b(f"{net.encoder} {net.pool}".encode())
    for name, tensor in net.encoder.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    key = digest.digest(), shape, features
    if key not in _last:
        session = _session(EncoderGraph(net, features), encoder_graph(net, shape, features))
        _last.clear()
        _last[key] = session
    return _last[key]


def _session(module: nn.Module, graph: Graph) -> Session:
    return Session(to_onnx(module, graph), graph, graph.file, threads=cpu_limit())


def _by_onnxruntime(
    session: Session, tensors: tuple[str, ...], images: np.ndarray | Rows, what: str
) -> dict[str, np.ndarray]:
    """Outputs for every image, kept for later callers: all that the graph gives of a whole image."""
    before = encodings.kept(session.digest, images)
    if before is not None and set(tensors) <= set(before):
        return before
    sizes: list[int] = []

    def joined(part: Tensor) -> Tensor:
        given = session.run(part.numpy(), list(tensors))
        sizes[:] = [given[name].shape[1] for name in tensors]
        return torch.from_numpy(np.concatenate([given[name] for name in tensors], axis=1))

    found = in_batches(joined, images, what, _AT_ONCE)
    ends = np.cumsum(sizes).tolist()
    split = {
        name: found if len(tensors) == 1 else np.ascontiguousarray(found[:, end - size : end])
        for name, size, end in zip(tensors, sizes, ends, strict=True)
    }
    encodings.keep(session.digest, images, split)
    return split


def moments(points: np.ndarray, least: float = 0) -> tuple[Tensor, Tensor]:
    """(D,) mean and standard deviation, computed in chunks; no deviation is below `least` of the average one."""
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in chunks(points)) / len(points)
    variance = sum(np.square(part - mean).sum(axis=0, dtype=np.float64) for part in chunks(points)) / len(points)
    std = torch.from_numpy(np.sqrt(variance)).float().clamp_min(1e-6)
    return torch.from_numpy(mean).float(), std.clamp_min(least * float(std.mean())) if least else std


def accuracy_of(net: Autoencoder, head: Head, tensor: str, data: ImageSet) -> float:
    """In torch, as trained; the exported graphs must agree with it. As training.measure.several.share_right has it."""

    def logits(images: Tensor) -> Tensor:
        return head(net.read(images.permute(0, 3, 1, 2).float() / 255, tensor))  # type: ignore[no-any-return]

    for module in (net.encoder, net.pool, head):
        module.cpu().eval()
    return share_right(in_batches(logits, data.images), data)
