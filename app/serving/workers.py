"""Several workers behind one listening socket. A parent, which serves nothing itself, starts, replaces and stops them.

    parent        owns the listening socket, and prints its address when the first worker is ready
    ├── worker    `python -m app` with the parent's arguments and environment; accepts from the parent's socket
    └── worker    …

Each worker shares a channel with the parent, a socket pair. The worker writes one byte into it when it is ready. When
either process dies, for whatever reason, the system closes its end, and the other process notices.

uvicorn has a supervisor of its own. As tests/app/serving/test_workers.py shows, it would cost the growing pause
before a worker that keeps dying is replaced; the end, with a status, of a service whose workers never become ready;
workers that end when their parent is killed; an end to waiting for a worker that does not stop, and the exit status 1
that tells of requests it dropped; and the call in which a dead worker's gauges are removed.
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

from app.serving.stop_listening import refuse_connections
from app.telemetry.logs import log

HANDED_OVER = "GRAFT_HANDED_OVER"  # from parent to worker: descriptors of listening socket and channel; not a setting
MAX_FAILURES = 3  # workers in a row that died before they were ready
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0  # before a worker is replaced
GRACE_S = 3.0  # from the end of draining until a worker is killed
UNUSABLE = 2  # exit status of a worker that printed why no worker can start


class Supervisor:
    """`run` returns the exit status. After a signal: 0, or 1 if a worker dropped a request or was killed. Otherwise the
    status that says why there can be no workers."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        workers: int,
        drain_s: float,
        ready: Callable[[], None],
        on_exit: Callable[[int], None] = lambda _: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`ready` is called once, when the first worker is ready; `on_exit` with the process id of each that ended.

        `environment` is added to the workers' environment.
        """
        self._command, self._listener, self._workers = command, listener, workers
        self._on_exit, self._environment = on_exit, environment or {}
        self._drain_s, self._ready = drain_s, ready
        self._running: set[Process] = set()
        self._serving: set[Process] = set()
        self._complete = False  # whether all workers have been ready at the same time
        self._failures = 0  # workers in a row that died before they were ready

    def run(self) -> int:
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[int] = loop.create_future()
        self._first = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        slots = [asyncio.create_task(self._supervise(slot)) for slot in range(self._workers)]
        try:
            ended, _ = await asyncio.wait([self._stop, *slots], return_when=asyncio.FIRST_COMPLETED)
        finally:
            refuse_connections(self._listener)
            self._listener.close()  # workers have it open too, and accept pending connections
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)
            all_answered = await self._stop_all()
        if self._stop in ended:
            return 0 if all_answered else 1
        return ended.pop().result()

    def _signalled(self) -> None:
        if not self._stop.done():
            self._stop.set_result(0)
            return
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _supervise(self, slot: int) -> int:
        """Replaces each worker of this slot that dies; returns an exit status if none can start. Slots wait for the
        first, so that an error at startup is printed once."""
        if slot > 0:
            await self._first.wait()
        pause = SHORTEST_PAUSE_S
        while True:
            began = time.monotonic()
            was_ready, code, outcome = await self._run_worker()
            if not was_ready:
                self._failures += 1
                if code == UNUSABLE and not self._first.is_set():
                    return UNUSABLE
                if self._failures >= MAX_FAILURES and not (self._complete and self._serving):
                    print(
                        f"graft: giving up: {self._failures} workers in a row were never ready; the last {outcome}; "
                        "see its output above",
                        file=sys.stderr,
                    )
                    return 1
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = SHORTEST_PAUSE_S
            log.warning("a worker %s; starting another in %.1f s", outcome, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _run_worker(self) -> tuple[bool, int | None, str]:
        """Starts one worker and waits for its exit: (whether it was ready, exit status, how it ended)."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            try:
                with theirs:
                    process = await self._start(theirs)
            except OSError as error:
                return False, None, f"could not be started: {error.strerror}"
            self._running.add(process)
            was_ready = await self._becomes_ready(ours)
            if was_ready:
                self._add_ready(process)
            code = await process.wait()
        self._on_exit(process.pid)
        self._running.discard(process)
        self._serving.discard(process)
        return was_ready, code, f"(process {process.pid}) {_describe_exit(code)}"

    async def _start(self, channel: socket.socket) -> Process:
        descriptors = (self._listener.fileno(), channel.fileno())
        return await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, **self._environment, HANDED_OVER: f"{descriptors[0]},{descriptors[1]}"},
            pass_fds=descriptors,
            stdin=DEVNULL,
            process_group=0,  # Ctrl-C reaches only the parent, which signals each worker once
        )

    async def _becomes_ready(self, channel: socket.socket) -> bool:
        try:
            return bool(await asyncio.get_running_loop().sock_recv(channel, 1))
        except OSError:
            return False

    def _add_ready(self, process: Process) -> None:
        self._failures = 0
        self._serving.add(process)
        self._complete |= len(self._serving) == self._workers
        if not self._first.is_set():
            self._first.set()
            self._ready()

    async def _stop_all(self) -> bool:
        """Stops all workers, and kills those that take too long to answer their last requests. Returns whether all that
        were ready report that they answered every request."""
        serving = list(self._serving)
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        exits = [asyncio.create_task(process.wait()) for process in self._running]
        if not exits:
            return True
        _, late = await asyncio.wait(exits, timeout=self._drain_s + GRACE_S)
        if late:
            log.warning("killing %d workers that did not end within %.0f s", len(late), self._drain_s + GRACE_S)
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.wait(late)
        return all(process.returncode == 0 for process in serving)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal; most have no name
        return f"was ended by signal {-code}"


# --- in the worker ---------------------------------------------------------------------------------------------


def handed_over() -> tuple[socket.socket, socket.socket] | None:
    """(listening socket, channel) in a worker; None in a process that a user started."""
    descriptors = os.environ.pop(HANDED_OVER, None)
    if descriptors is None:
        return None
    listener, channel = (socket.socket(fileno=int(number)) for number in descriptors.split(","))
    listener.set_inheritable(False)
    channel.set_inheritable(False)
    return listener, channel


def report_ready(channel: socket.socket) -> None:
    channel.send(b"+")


def exit_with_parent(channel: socket.socket, drain_s: float) -> None:
    """Stops this worker if its parent is killed: it drains as after SIGTERM, and exits in any case."""

    def watch() -> None:
        with contextlib.suppress(OSError):  # reset, if the parent died before it read our byte
            channel.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(drain_s + GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
