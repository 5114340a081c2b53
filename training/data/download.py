"""Download named data sets: mirrors are tried in order; checksums are of the unpacked file."""

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from training.errors import TrainingError
from training.progress import say, track

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_CHUNK = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """`<mirror><name>.gz`, unpacked to `sha256` and `size`."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Source:
    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]


SOURCES = {
    "mnist": Source(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files=(
            RemoteFile(
                "train-images-idx3-ubyte",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                47_040_016,
            ),
            RemoteFile(
                "train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 60_008
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 7_840_016
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 10_008
            ),
        ),
    ),
    "fashion-mnist": Source(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        files=(
            RemoteFile(
                "train-images-idx3-ubyte",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                47_040_016,
            ),
            RemoteFile(
                "train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60_008
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7_840_016
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10_008
            ),
        ),
    ),
}


def download(source: Source, folder: Path, client: httpx.Client) -> None:
    """Fetch and verify every missing file, or raise a TrainingError with each mirror's failure."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.files:
        target = folder / f"{file.name}.gz"
        if target.is_file() and _unpacked_sum(target, file) == file.sha256:
            say(f"{target}: already there")
            continue
        failures = []
        for mirror in source.mirrors:
            try:
                _fetch(f"{mirror}{file.name}.gz", target, file, client)
                break
            except (httpx.HTTPError, OSError, _WrongBytes) as error:
                failures.append(f"{mirror}: {error or type(error).__name__}")
        else:
            raise TrainingError(
                f"{file.name}.gz could not be downloaded: {'; '.join(failures)}. "
                f"Get it by other means, put it into {folder}, and run this again: its sum is checked"
            )
        say(f"{target}: downloaded and verified")


class _WrongBytes(Exception):
    pass


def _fetch(url: str, target: Path, file: RemoteFile, client: httpx.Client) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".downloading-", delete=False) as temporary:
        path = Path(temporary.name)
        try:
            with client.stream("GET", url, follow_redirects=True) as response:
                response.raise_for_status()
                length = int(response.headers.get("content-length", 0))
                chunks = track(response.iter_raw(_CHUNK), file.name, -(-length // _CHUNK))
                for count, chunk in enumerate(chunks):
                    if count * _CHUNK > 2 * file.size:
                        raise _WrongBytes("more bytes than the file has")
                    temporary.write(chunk)
            temporary.flush()
            actual = _unpacked_sum(path, file)
            if actual != file.sha256:
                raise _WrongBytes(f"SHA-256 {actual[:12]}… where {file.sha256[:12]}… was expected")
            path.chmod(0o644)
            os.replace(path, target)
        finally:
            path.unlink(missing_ok=True)


def _unpacked_sum(path: Path, file: RemoteFile) -> str:
    """SHA-256 of the unpacked contents; stops reading beyond the expected size."""
    digest = hashlib.sha256()
    try:
        for chunk in _unpack(path, file.size + 1):
            digest.update(chunk)
    except (OSError, EOFError, zlib.error):
        return "(not a whole gzip file)"
    return digest.hexdigest()


def _unpack(path: Path, most: int) -> Iterator[bytes]:
    with gzip.open(path) as unpacked:
        while most > 0 and (chunk := unpacked.read(min(_CHUNK, most))):
            most -= len(chunk)
            yield chunk
