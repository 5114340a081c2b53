"""The serving process: uvicorn around the app. Processes that only supervise workers never import this module.

stop requested ─▶ not ready, every answer says `Connection: close`
               ─▶ new connections are refused; pending ones are accepted
               ─▶ idle connections are closed, after a moment in which a request may still arrive
               ─▶ requests in flight are answered, within `drain_s`
               ─▶ exit; at once on a second signal. The status is 1 if a request in flight was not answered
"""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

from app.bundle.store import names, versions
from app.errors import SettingsInvalid
from app.main import create_app
from app.serving import memory
from app.serving.connection import Connection, connection_factory
from app.serving.stop_listening import accept_pending, refuse_connections
from app.settings import PREFIX, Settings
from app.telemetry.logs import log

if TYPE_CHECKING:
    from app.api.rpc.server import RpcServer

_IDLE_S = 1.0  # an idle connection may still get a request in this time
_IDLE_TURNS = 10  # and in at least so many turns of the loop, because the machine may be slow
_HANDSHAKE_S = 0.05  # for TCP handshakes under way
_OTHER_FILES = 256  # open files that are not connections: models, pools, the log
_GRACE_S = 1.0  # from the end of `drain_s` until a process that still runs is ended


def serve(
    settings: Settings,
    listen: Callable[[], socket.socket],
    ready: Callable[[socket.socket], None],
    has_parent: bool = False,
) -> int:
    """Serves until a signal; returns the exit status, which is 1 if requests were left unanswered.

    `ready` is called when the service can answer. With a parent, a second signal does not end the process at once:
    parents may repeat the signal, and kill where they must.
    """
    _require_bundles(settings)
    memory.use_one_arena()
    _allow_descriptors(2 * settings.max_connections + _OTHER_FILES)
    try:
        app = create_app(settings, on_freed=memory.trim)
    except OSError as error:
        fix = "workers share their metrics there; make room, or set TMPDIR to another folder"
        raise SettingsInvalid(f"{error.filename}: {error.strerror}: {fix}") from None
    listener = listen()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata in clients' images
    config = uvicorn.Config(
        app,
        http=connection_factory(  # type: ignore[arg-type]  # uvicorn only calls it
            app.state.fast_path, settings.head_timeout_s, settings.keep_alive_s, settings.max_connections
        ),
        log_level="warning",
        log_config=None,  # our configuration handles its lines too
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=settings.drain_s,
    )
    server = _Server(
        config,
        settings.drain_s,
        ready=lambda: ready(listener),
        leave=app.state.repository.leave,
        has_parent=has_parent,
        rpc=app.state.rpc,
    )
    server.run([listener])
    return server.status if server.started else 1


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        drain_s: float,
        ready: Callable[[], None],
        leave: Callable[[], None],
        has_parent: bool,
        rpc: "RpcServer | None" = None,
    ) -> None:
        super().__init__(config)
        self._rpc = rpc
        self._drain_s, self._ready, self._leave, self._has_parent = drain_s, ready, leave, has_parent
        self._dropped = 0  # requests in flight at the end of `drain_s`

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self._dropped or self._in_flight() or (self._rpc is not None and self._rpc.dropped) else 0

    def _in_flight(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection) and each.busy]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As in uvicorn, but does not raise the signal again afterwards: a requested stop is a success."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            if not self._has_parent:
                os._exit(self.status)
            return
        self.should_exit = True
        self._leave()
        threading.Thread(target=self._exit_after_grace, name="graft-exit", daemon=True).start()

    def _exit_after_grace(self) -> None:
        """A thread that hangs, in a graph for example, would keep the process alive."""
        time.sleep(self._drain_s + _GRACE_S)
        log.warning("still running %g s after the stop was requested: exiting now", self._drain_s + _GRACE_S)
        os._exit(self.status)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            memory.freeze()
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        began = time.monotonic()
        rpc = None if self._rpc is None else asyncio.ensure_future(self._rpc.stop(self._drain_s))
        listeners, state = sockets or [], self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        if not self._has_parent:  # a parent has done so for all its workers
            for listener in listeners:
                refuse_connections(listener)
            await asyncio.sleep(_HANDSHAKE_S)
        for connection in state.connections:
            assert isinstance(connection, Connection)
            if connection.busy:
                connection.shutdown()  # it closes after the answer
        await self._accept_pending(listeners)
        deadline, turns = time.monotonic() + min(_IDLE_S, self._drain_s / 2), 0
        # uvicorn has no event for the end of a connection.
        while state.connections and (time.monotonic() < deadline or turns < _IDLE_TURNS):
            await asyncio.sleep(0.01)
            turns += 1
        for connection in list(state.connections):
            connection.shutdown()
        while self._in_flight() and time.monotonic() - began < self._drain_s:  # noqa: ASYNC110  # nor for an answer
            await asyncio.sleep(0.01)
        self._drop()
        if rpc is not None:
            await rpc
        remaining = self._drain_s - (time.monotonic() - began)
        self.config.timeout_graceful_shutdown = remaining  # type: ignore[assignment]  # a float works too
        await super().shutdown(sockets)
        for connection in list(state.connections):  # uvicorn does not wait for answers of the fast path
            connection.transport.abort()
        await asyncio.sleep(0)

    def _drop(self) -> None:
        """Aborts the requests that are still in flight."""
        self._dropped = len(self._in_flight())
        if self._dropped:
            log.warning("requests dropped because they were not answered within %d s: %d", self._drain_s, self._dropped)
        for connection in self._in_flight():
            connection.transport.abort()

    async def _accept_pending(self, listeners: Sequence[socket.socket]) -> None:
        """Accepts all pending connections and stops listening. The kernel resets pending connections when a socket is
        closed, and the loop accepts only one a turn."""
        duplicates = [listener.dup() for listener in listeners]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        connections = [connection for duplicate in duplicates for connection in accept_pending(duplicate)]
        loop = asyncio.get_running_loop()
        for connection in connections:
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]


def _allow_descriptors(wanted: int) -> None:
    """Raises the limit of open files to `wanted`, or as far as the system allows."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # without permission the default stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _require_bundles(settings: Settings) -> None:
    """SettingsInvalid without a model to serve. If models may be loaded later, an empty folder is fine."""
    models = settings.models
    fix = f"train one with `make train RECIPE=seed`, or set {PREFIX}MODELS to a folder of bundles"
    if not os.path.isdir(models):  # also False for text that cannot be a path
        raise SettingsInvalid(f"{PREFIX}MODELS={models}: there is no such folder; {fix}")
    if settings.model_control != "none":
        return
    if not any(versions(models / name) for name in names(models)):
        raise SettingsInvalid(f"{PREFIX}MODELS={models}: it has no <name>/<version>/; {fix}")
    wanted = settings.default_model
    if wanted is not None and wanted not in names(models):
        available = ", ".join(names(models))
        raise SettingsInvalid(f"{PREFIX}DEFAULT_MODEL={wanted}: not in {models}, which has: {available}")
