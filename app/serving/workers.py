"""Several workers behind one listening socket, started, replaced and stopped by a parent that serves nothing itself.

    parent        holds the listening socket, and says where once the first worker is ready
    ├── worker    `python -m app` with the parent's arguments and environment; accepts from the parent's socket
    └── worker    …

Each worker has a channel to the parent, a pair of sockets. The worker writes one byte into it when it is ready; each
end closes when its holder dies, however it dies, so that the other learns of it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence

from app.serving.listener import refuse_connections
from app.telemetry.logs import log

HANDED_OVER = "GRAFT_HANDED_OVER"  # listening socket and channel, by file descriptor: from parent to worker, no setting
PATIENCE = 3  # workers in a row that die before they are ready
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
GRACE_S = 3.0  # from the end of draining until a worker is killed
UNUSABLE = 2  # exit status of a worker that has said in a sentence why no other would start


class Supervisor:
    """`run` returns the exit status. When a signal asked for the end: 0, or 1 where a worker dropped a request or was
    killed; else why there can be no workers."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        workers: int,
        drain_s: float,
        ready: Callable[[], None],
        gone: Callable[[int], None] = lambda _: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`ready` is called once, when the first worker is; `gone` for each that ended, with its process id.

        `environment` is added to the workers' own.
        """
        self._command, self._listener, self._workers = command, listener, workers
        self._gone, self._environment = gone, environment or {}
        self._drain_s, self._ready = drain_s, ready
        self._running: set[Process] = set()
        self._serving: set[Process] = set()
        self._complete = False  # once as many served as were asked for
        self._failures = 0  # workers in a row that were never ready

    def run(self) -> int:
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[int] = loop.create_future()
        self._first = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        places = [asyncio.create_task(self._keep(place)) for place in range(self._workers)]
        try:
            ended, _ = await asyncio.wait([self._stop, *places], return_when=asyncio.FIRST_COMPLETED)
        finally:
            refuse_connections(self._listener)
            self._listener.close()  # the workers hold it too, and let in who has connected
            for place in places:
                place.cancel()
            await asyncio.gather(*places, return_exceptions=True)
            whole = await self._end_all()
        if self._stop in ended:
            return 0 if whole else 1
        return ended.pop().result()

    def _signalled(self) -> None:
        if not self._stop.done():
            self._stop.set_result(0)
            return
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _keep(self, place: int) -> int:
        """Replaces whoever dies in this place; returns when that is hopeless. The first place goes first: what keeps
        a worker from starting is said once."""
        if place > 0:
            await self._first.wait()
        pause = SHORTEST_PAUSE_S
        while True:
            began = time.monotonic()
            was_ready, code, fate = await self._live()
            if not was_ready:
                self._failures += 1
                if code == UNUSABLE and not self._first.is_set():
                    return UNUSABLE
                if self._failures >= PATIENCE and not (self._complete and self._serving):
                    print(
                        f"graft: giving up: {self._failures} workers in a row were never ready; the last {fate}; "
                        "its own words, if any, are above",
                        file=sys.stderr,
                    )
                    return 1
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = SHORTEST_PAUSE_S
            log.warning("a worker %s; another takes its place in %.1f s", fate, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _live(self) -> tuple[bool, int | None, str]:
        """One worker's life: (whether it was ready, exit status, its end in words)."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            try:
                with theirs:
                    process = await self._start(theirs)
            except OSError as error:
                return False, None, f"could not be started: {error.strerror}"
            self._running.add(process)
            was_ready = await self._hears_from(ours)
            if was_ready:
                self._welcome(process)
            code = await process.wait()
        self._gone(process.pid)
        self._running.discard(process)
        self._serving.discard(process)
        return was_ready, code, f"(process {process.pid}) {_fate(code)}"

    async def _start(self, channel: socket.socket) -> Process:
        handed = (self._listener.fileno(), channel.fileno())
        return await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, **self._environment, HANDED_OVER: f"{handed[0]},{handed[1]}"},
            pass_fds=handed,
            stdin=DEVNULL,
            process_group=0,  # Ctrl-C is for the parent, which tells its workers once
        )

    async def _hears_from(self, channel: socket.socket) -> bool:
        try:
            return bool(await asyncio.get_running_loop().sock_recv(channel, 1))
        except OSError:
            return False

    def _welcome(self, process: Process) -> None:
        self._failures = 0
        self._serving.add(process)
        self._complete |= len(self._serving) == self._workers
        if not self._first.is_set():
            self._first.set()
            self._ready()

    async def _end_all(self) -> bool:
        """Each worker answers what it has accepted; who takes longer than that may is killed. Whether all that served
        say that they have answered."""
        serving = list(self._serving)
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        ends = [asyncio.create_task(process.wait()) for process in self._running]
        if not ends:
            return True
        _, late = await asyncio.wait(ends, timeout=self._drain_s + GRACE_S)
        if late:
            log.warning("%d workers did not end in %.0f s and are killed", len(late), self._drain_s + GRACE_S)
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.wait(late)
        return all(process.returncode == 0 for process in serving)


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # one of the real-time signals, most of which have no name
        return f"was ended by signal {-code}"


# --- in the worker ---------------------------------------------------------------------------------------------


def handed_over() -> tuple[socket.socket, socket.socket] | None:
    """(listening socket, channel) in a worker; None in a process that its user started."""
    descriptors = os.environ.pop(HANDED_OVER, None)
    if descriptors is None:
        return None
    listener, channel = (socket.socket(fileno=int(number)) for number in descriptors.split(","))
    listener.set_inheritable(False)
    channel.set_inheritable(False)
    return listener, channel


def tell_ready(channel: socket.socket) -> None:
    channel.send(b"+")


def end_with_parent(channel: socket.socket, drain_s: float) -> None:
    """Nobody would stop a worker whose parent was killed: it drains as on SIGTERM, and in any case ends."""

    def watch() -> None:
        with contextlib.suppress(OSError):  # reset: the parent died with our byte unread
            channel.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(drain_s + GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
