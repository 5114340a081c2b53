"""Decodes one image at a time in a separate process: `python -m app.bundle.decoder`, with a socket as standard input.

    Decoder (parent)   ── spec, limits, file ──▶   main (child): reads, decodes, resizes
                       ◀── (H, W, C) uint8, or an error ──

Some images take a second to decode, during which Python's lock may be held, or hundreds of megabytes, for which the
kernel may kill the process. In a child neither harms other requests. The child runs at low priority, takes no more
memory than it was granted for an image, is the first that the kernel kills when memory runs out, and exits when the
socket closes.
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

AVAILABLE = sys.platform != "win32"  # Windows cannot pass a socket as standard input

_REQUEST = struct.Struct("<IQQQ")  # bytes of the spec, bytes of the file, max_pixels, bytes of memory
_RESPONSE = struct.Struct("<BIIQ")  # whether decoding failed, height and width, bytes that follow
_ERRORS = {error.__name__: error for error in (BrokenImage, NotAnImage, TooManyPixels)}
_NICE = 10
_OOM_SCORE = "1000"  # the kernel kills this process first
_SLACK = 32 << 20  # bytes granted beyond an image's reservation: the allocator rounds up
_PARENT = Path(__file__).parents[2]  # the child must run this very package
_ENVIRONMENT = {  # returns freed memory to the system at once, and keeps libraries from starting threads
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class Decoder:
    """The child process, as the parent sees it. All methods block; only one thread may use it at a time."""

    def __init__(self, timeout_s: float) -> None:
        """If an image takes longer than `timeout_s`, the process is killed."""
        self._timeout_s = timeout_s
        ours, theirs = socket.socketpair()
        # Without GRAFT_ settings, which may contain keys.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
        path = os.pathsep.join(filter(None, [str(_PARENT), os.environ.get("PYTHONPATH")]))
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "app.bundle.decoder"],
                    env={**inherited, **_ENVIRONMENT, "PYTHONPATH": path},
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libtiff writes warnings about clients' files
                    process_group=0,  # Ctrl-C is for the parent
                )
        except OSError as error:
            ours.close()
            raise DecoderEnded(f"no process could be started to decode this image: {error.strerror}") from None
        ours.settimeout(timeout_s)
        self._socket, self._stream = ours, ours.makefile("rb")

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray:
        """(H, W, C) uint8. Raises the ImageErrors of `preprocess`; after DecoderEnded this object is unusable."""
        encoded_spec = spec.model_dump_json().encode()
        try:
            self._socket.sendall(_REQUEST.pack(len(encoded_spec), len(data), max_pixels, memory) + encoded_spec)
            self._socket.sendall(data)
            failed, height, width, size = _RESPONSE.unpack(_read(self._stream, _RESPONSE.size))
            payload = _read(self._stream, size)
        except TimeoutError:
            raise self._failed(f"was killed, because it took more than {self._timeout_s:g} s") from None
        except (OSError, EOFError):
            raise self._failed("ended") from None
        if failed:
            kind, message = json.loads(payload)
            raise _ERRORS[kind](message)
        return np.frombuffer(payload, np.uint8).reshape(height, width, spec.channels)

    def close(self) -> None:
        """Kills the process."""
        with contextlib.suppress(OSError):
            self._process.kill()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for an answer
        self._process.wait()
        self._stream.close()
        self._socket.close()

    def _failed(self, how: str) -> DecoderEnded:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its socket, so it is about to exit
            self._process.wait(1 if how == "ended" else 0)
        self.close()
        code = self._process.returncode
        if how == "ended":
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return DecoderEnded(
            f"the process that decoded this image {how}. Other requests are not affected; a smaller image may work"
        )


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


# --- in the child ----------------------------------------------------------------------------------------------


def main() -> None:
    _lower_priority()
    warnings.simplefilter("ignore")  # about metadata in clients' images
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rb") as stream:
        while (head := stream.read(_REQUEST.size)) and len(head) == _REQUEST.size:
            spec_size, size, max_pixels, memory = _REQUEST.unpack(head)
            spec = InputSpec.model_validate_json(_read(stream, spec_size))
            outcome = _decode(_read(stream, size), spec, max_pixels, memory)
            if isinstance(outcome, bytes):
                channel.sendall(_RESPONSE.pack(True, 0, 0, len(outcome)) + outcome)
            else:
                channel.sendall(_RESPONSE.pack(False, *outcome.shape[:2], outcome.nbytes))
                channel.sendall(outcome.data)
            del outcome  # a picture in tiles has its own size


def _decode(data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray | bytes:
    """(H, W, C) uint8, or the error as JSON."""
    try:
        with _memory_limit(memory):
            return np.ascontiguousarray(preprocess(data, spec, max_pixels))
    except ImageError as error:
        return json.dumps([type(error).__name__, str(error)]).encode()
    except MemoryError:
        message = f"broken: decoding it takes more than the {memory:,} bytes that its header implies"
        return json.dumps([BrokenImage.__name__, message]).encode()


@contextlib.contextmanager
def _memory_limit(memory: int) -> Iterator[None]:
    """Lets the process allocate at most `memory` more bytes."""
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
    except (OSError, ValueError, IndexError):  # not Linux: the limit is then tighter
        pages = 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _lower_priority() -> None:
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would be large, and contain a client's image


if __name__ == "__main__":
    with contextlib.suppress(OSError, EOFError):  # the parent has exited
        main()
