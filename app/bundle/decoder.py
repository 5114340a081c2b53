"""One image at a time, decoded in a process of its own: `python -m app.bundle.decoder`, its standard input a socket.

    Decoder (here)     ── spec, limits, file ──▶   main (there): reads, decodes, resizes
                       ◀── (H, W, C) uint8, or why not ──

What decodes for a second would hold Python's lock, and what takes hundreds of megabytes may be ended by the system:
there it harms nobody. The process runs at a low priority, takes no more memory than it is granted for an image, is the
first to go where memory runs out, and ends when the socket closes, however the other side ended.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from app.bundle.manifest import InputSpec
from app.bundle.preprocess import preprocess
from app.errors import BrokenImage, DecoderEnded, ImageError, NotAnImage, TooManyPixels

AVAILABLE = sys.platform != "win32"  # which cannot hand a socket over so

_ASKED = struct.Struct("<IQQQ")  # bytes of the spec and of the file, most pixels, bytes of memory
_TOLD = struct.Struct("<BQ")  # whether it failed, bytes that follow
_ERRORS = {error.__name__: error for error in (BrokenImage, NotAnImage, TooManyPixels)}
_NICE = 10
_FIRST_TO_GO = "1000"  # of oom_score_adj
_SLACK = 32 << 20  # bytes granted beyond what an image was reserved: the allocator rounds up
_PARENT = Path(__file__).parents[2]  # of the package: the process must run this very code
_OWN = {  # what is freed goes back to the system at once, and no library brings threads
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class Decoder:
    """The process, seen from outside. All of its calls block; one thread uses it at a time."""

    def __init__(self, patience_s: float) -> None:
        """An image that takes longer than `patience_s` is given up, and the process ended."""
        self._patience_s = patience_s
        ours, theirs = socket.socketpair()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}  # keys are not its
        path = os.pathsep.join(filter(None, [str(_PARENT), os.environ.get("PYTHONPATH")]))
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "app.bundle.decoder"],
                    env={**kept, **_OWN, "PYTHONPATH": path},
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libtiff's words about a client's file
                    process_group=0,  # Ctrl-C is for who serves
                )
        except OSError as error:
            ours.close()
            raise DecoderEnded(f"no process could be started to decode this image: {error.strerror}") from None
        ours.settimeout(patience_s)
        self._socket, self._stream = ours, ours.makefile("rb")

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray:
        """(H, W, C) uint8; ImageError as preprocess has it. After DecoderEnded it is of no use any more."""
        asked = spec.model_dump_json().encode()
        try:
            self._socket.sendall(_ASKED.pack(len(asked), len(data), max_pixels, memory) + asked)
            self._socket.sendall(data)
            failed, size = _TOLD.unpack(_exactly(self._stream, _TOLD.size))
            told = _exactly(self._stream, size)
        except TimeoutError:
            raise self._ended(f"was ended, as it took more than {self._patience_s:g} s") from None
        except (OSError, EOFError):
            raise self._ended("ended") from None
        if failed:
            kind, message = json.loads(told)
            raise _ERRORS[kind](message)
        return np.frombuffer(told, np.uint8).reshape(spec.shape)

    def close(self) -> None:
        """The process ends, at once."""
        with contextlib.suppress(OSError):
            self._process.kill()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer learns of it
        self._process.wait()
        self._stream.close()
        self._socket.close()

    def _ended(self, how: str) -> DecoderEnded:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its socket, and so is about to
            self._process.wait(1 if how == "ended" else 0)
        self.close()
        code = self._process.returncode
        if how == "ended":
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return DecoderEnded(f"the process that decoded this image {how}; others go on. A smaller image may pass")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


# --- in the process ----------------------------------------------------------------------------------------------


def main() -> None:
    _be_modest()
    warnings.simplefilter("ignore")  # odd metadata in a client's image is not our operator's affair
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rb") as stream:
        while (head := stream.read(_ASKED.size)) and len(head) == _ASKED.size:
            spec_size, size, max_pixels, memory = _ASKED.unpack(head)
            spec = InputSpec.model_validate_json(_exactly(stream, spec_size))
            failed, told = _answer(_exactly(stream, size), spec, max_pixels, memory)
            channel.sendall(_TOLD.pack(failed, len(told)) + told)


def _answer(data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> tuple[bool, bytes]:
    try:
        with _granted(memory):
            return False, preprocess(data, spec, max_pixels).tobytes()
    except ImageError as error:
        return True, json.dumps([type(error).__name__, str(error)]).encode()
    except MemoryError:
        told = f"broken: decoding it takes more than the {memory:,} bytes that its header lets expect"
        return True, json.dumps([BrokenImage.__name__, told]).encode()


@contextlib.contextmanager
def _granted(memory: int) -> Iterator[None]:
    """So many bytes more than are there."""
    if resource is None or not memory:
        yield
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + memory + _SLACK, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _data_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, ValueError, IndexError):  # not Linux: the limit is a bound all the same
        pages = 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _be_modest() -> None:
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of a few hundred megabytes, and with a client's image


if __name__ == "__main__":
    with contextlib.suppress(OSError, EOFError):  # whoever asked has gone
        main()
