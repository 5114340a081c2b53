"""Where a cluster's images lie and its results go: paths that its machines share, or object storage. Needs pyarrow."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from app.errors import BodyTooLarge, CannotScore
from app.score.batches import read_file
from app.score.paths import SUFFIXES, Problem, find


def is_remote(path: str) -> bool:
    """Whether it is a URI, as in s3://bucket/folder, and not a path."""
    return "://" in path


class Roots:
    """File systems by root: scheme://bucket or host. Each is built once, as it has connections and credentials of its
    own, and is used by all threads.
    """

    def __init__(self, build: Callable[[str], tuple[Any, str]]) -> None:
        """`build` takes a root's URI and gives its file system and the path of the root in it."""
        self._build, self._built = build, dict[str, tuple[Any, str]]()
        self._lock = threading.Lock()

    def find(self, uri: str) -> tuple[Any, str]:
        """The file system, and the path in it."""
        parts = urlsplit(uri)
        root = f"{parts.scheme}://{parts.netloc}"
        with self._lock:  # or the first images, which come together, would each build one
            if root not in self._built:
                self._built[root] = self._build(f"{root}/")
            system, top = self._built[root]
        return system, f"{top.rstrip('/')}{unquote(parts.path).rstrip('/')}" or "/"


def _from_uri(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    found: tuple[Any, str] = fs.FileSystem.from_uri(uri)
    return found


_ROOTS = Roots(_from_uri)


def filesystem(path: str, roots: Roots = _ROOTS) -> tuple[Any, str]:
    """pyarrow's file system, and the path in it. Keys and endpoints are its environment's: AWS_… and the like."""
    if not is_remote(path):
        from pyarrow import fs

        return fs.LocalFileSystem(), os.path.abspath(path)
    refuse_secrets(path)
    try:
        return roots.find(path)
    except (ValueError, OSError, NotImplementedError) as error:  # pyarrow's own are of these
        raise CannotScore(f"{path}: {_in_short(error)}") from None


def refuse_secrets(uri: str) -> None:
    """They would stand in every row."""
    parts = urlsplit(uri)
    if parts.username or parts.query:
        raise CannotScore(f"{parts.scheme}://…: keys and options belong into the environment, not into the path")


def find_all(given: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """As `find`, of paths and URIs."""
    images, problems = find(local) if (local := [path for path in given if not is_remote(path)]) else ([], [])
    for uri in filter(is_remote, given):
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
        raise CannotScore(f"{uri}: {_in_short(error)}") from None
    found = [file.path for file in files if file.type == fs.FileType.File and file.path.lower().endswith(SUFFIXES)]
    if not found:
        raise CannotScore(f"{uri}: no image in it ({' '.join(SUFFIXES)}), nor below it")
    return [f"{urlsplit(uri).scheme}://{quote(path)}" for path in sorted(found)]


def read(path: str, most: int, roots: Roots = _ROOTS) -> bytes:
    """As batches.read_file, of paths and URIs."""
    if not is_remote(path):
        return read_file(path, most)
    system, inside = filesystem(path, roots)
    with system.open_input_file(inside) as file:
        if (size := file.size()) > most:
            raise BodyTooLarge(f"{size:,} bytes; at most {most:,} are allowed (--max-body-mb)")
        return bytes(file.read())


def write(path: str, data: bytes) -> None:
    """Whole or not at all: object storage shows nothing else, and a file gets its name last."""
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


def _in_short(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
