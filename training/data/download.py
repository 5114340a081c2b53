"""Download files: mirrors are tried in order, an interrupted download goes on, checksums are of the unpacked file."""

import gzip
import hashlib
import os
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
    """`<mirror><name>.gz`, unpacked to `sha256` and `size`; or `<mirror><name>`, where it is not `packed`."""

    name: str
    sha256: str  # or its first digits
    size: int  # or the most that it may be
    packed: bool = True

    @property
    def stored(self) -> str:
        return f"{self.name}.gz" if self.packed else self.name


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
        target = folder / file.stored
        if target.is_file() and _unpacked_sum(target, file).startswith(file.sha256):
            say(f"{target}: already there")
            continue
        failures = []
        for mirror in source.mirrors:
            try:
                _fetch(f"{mirror}{file.stored}", target, file, client)
                break
            except (httpx.HTTPError, OSError, _WrongBytes) as error:
                failures.append(f"{mirror}: {error or type(error).__name__}")
        else:
            raise TrainingError(
                f"{file.stored} could not be downloaded: {'; '.join(failures)}. "
                f"Get it by other means, put it into {folder}, and run this again: its sum is checked"
            )
        say(f"{target}: downloaded and verified")


class _WrongBytes(Exception):
    pass


def _fetch(url: str, target: Path, file: RemoteFile, client: httpx.Client) -> None:
    """What an interrupted download left is kept as `.NAME.part`, and the rest is asked for."""
    partial = target.with_name(f".{target.name}.part")
    resumed = partial.is_file()
    try:
        _append(url, partial, file, client)
        actual = _unpacked_sum(partial, file)
        if not actual.startswith(file.sha256):
            raise _WrongBytes(f"SHA-256 {actual[:12]}… where {file.sha256[:12]}… was expected")
    except _WrongBytes:
        partial.unlink(missing_ok=True)
        if not resumed:
            raise
        _fetch(url, target, file, client)  # the part was of other bytes
        return
    os.replace(partial, target)


def _append(url: str, partial: Path, file: RemoteFile, client: httpx.Client) -> None:
    there = partial.stat().st_size if partial.is_file() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    with client.stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the part may be whole: its sum tells
        response.raise_for_status()
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
        length = int(response.headers.get("content-length", 0))
        most = 2 * file.size - (there if goes_on else 0)
        with partial.open("ab" if goes_on else "wb") as written:
            chunks = track(response.iter_raw(_CHUNK), file.name, -(-length // _CHUNK))
            for count, chunk in enumerate(chunks):
                if count * _CHUNK > most:
                    raise _WrongBytes("more bytes than the file has")
                written.write(chunk)


def _unpacked_sum(path: Path, file: RemoteFile) -> str:
    """SHA-256 of the unpacked contents; stops reading beyond the expected size."""
    digest = hashlib.sha256()
    try:
        for chunk in _unpack(path, file):
            digest.update(chunk)
    except (OSError, EOFError, zlib.error):
        return "(not a whole gzip file)" if file.packed else "(cannot be read)"
    return digest.hexdigest()


def _unpack(path: Path, file: RemoteFile) -> Iterator[bytes]:
    most = file.size + 1
    with gzip.open(path) if file.packed else path.open("rb") as unpacked:
        while most > 0 and (chunk := unpacked.read(min(_CHUNK, most))):
            most -= len(chunk)
            yield chunk
