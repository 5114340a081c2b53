"""Files of a cluster run: on paths that all machines share, or in object storage. Needs pyarrow."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from app.errors import BodyTooLarge, CannotScore
from app.score.batches import read_file
from app.score.paths import SUFFIXES, FileProblem, find


def is_remote(path: str) -> bool:
    """Whether it is a URI such as s3://bucket/folder, not a local path."""
    return "://" in path


class Roots:
    """Root (scheme://bucket or scheme://host) → file system. Each is built once and shared by all threads, because it
    has its own connections and credentials.
    """

    def __init__(self, build: Callable[[str], tuple[Any, str]]) -> None:
        """`build`: URI of a root → (its file system, the root's path in it)."""
        self._build, self._built = build, dict[str, tuple[Any, str]]()
        self._lock = threading.Lock()

    def find(self, uri: str) -> tuple[Any, str]:
        """URI → (file system, path in it)."""
        parts = urlsplit(uri)
        root = f"{parts.scheme}://{parts.netloc}"
        with self._lock:  # otherwise the threads of the first images would each build one
            if root not in self._built:
                self._built[root] = self._build(f"{root}/")
            system, top = self._built[root]
        return system, f"{top.rstrip('/')}{unquote(parts.path).rstrip('/')}" or "/"


def _from_uri(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    system_and_path: tuple[Any, str] = fs.FileSystem.from_uri(uri)
    return system_and_path


_ROOTS = Roots(_from_uri)


def filesystem(path: str, roots: Roots = _ROOTS) -> tuple[Any, str]:
    """Path or URI → (pyarrow file system, path in it). Keys and endpoints come from the environment: AWS_… etc."""
    if not is_remote(path):
        from pyarrow import fs

        return fs.LocalFileSystem(), os.path.abspath(path)
    refuse_secrets(path)
    try:
        return roots.find(path)
    except (ValueError, OSError, NotImplementedError) as error:  # the bases of pyarrow's exceptions
        raise CannotScore(f"{path}: {_first_line(error)}") from None


def refuse_secrets(uri: str) -> None:
    """Every row has the path of its image, and so would show the keys."""
    parts = urlsplit(uri)
    if parts.username or parts.query:
        raise CannotScore(f"{parts.scheme}://…: the path has keys or options; set them in the environment instead")


def find_all(paths: Sequence[str]) -> tuple[list[str], list[FileProblem]]:
    """As `paths.find`, for paths and URIs."""
    images, problems = find(local) if (local := [path for path in paths if not is_remote(path)]) else ([], [])
    for uri in filter(is_remote, paths):
        images += _below(uri)
    return list(dict.fromkeys(os.path.abspath(path) if not is_remote(path) else path for path in images)), problems


def _below(uri: str) -> list[str]:
    from pyarrow import fs

    system, path = filesystem(uri)
    try:
        if system.get_file_info(path).type == fs.FileType.File:
            return [uri]
        files = system.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise CannotScore(f"{uri}: {_first_line(error)}") from None
    images = [file.path for file in files if file.type == fs.FileType.File and file.path.lower().endswith(SUFFIXES)]
    if not images:
        raise CannotScore(f"{uri}: no image ({' '.join(SUFFIXES)}) in it or in folders below it")
    return [f"{urlsplit(uri).scheme}://{quote(path)}" for path in sorted(images)]


def read(path: str, most: int, roots: Roots = _ROOTS) -> bytes:
    """As batches.read_file, for paths and URIs."""
    if not is_remote(path):
        return read_file(path, most)
    system, inside = filesystem(path, roots)
    with system.open_input_file(inside) as file:
        if (size := file.size()) > most:
            raise BodyTooLarge(f"{size:,} bytes; at most {most:,} are allowed (--max-body-mb)")
        return bytes(file.read())


def write(path: str, data: bytes) -> None:
    """Writes atomically: object storage does so itself, and a local file is renamed when it is complete."""
    system, inside = filesystem(path)
    if system.type_name != "local":
        with system.open_output_stream(inside) as file:
            file.write(data)
        return
    folder, name = os.path.split(inside)
    os.makedirs(folder, exist_ok=True)
    writing = os.path.join(folder, f".{name}.{os.uname().nodename}.{os.getpid()}")
    with open(writing, "wb") as file:
        file.write(data)
    os.replace(writing, inside)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
