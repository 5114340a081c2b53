"""One process that serves: uvicorn around the app. Whoever only supervises such processes never imports this.

asked to end ─▶ not ready, every answer says `Connection: close`
             ─▶ nobody can connect any more; who has is let in
             ─▶ connections that are idle are closed, after a moment in which a request may be on its way
             ─▶ what is in flight is answered, within `drain_s`
             ─▶ the end; at once where it is asked for again. Its status is 1 where a request in flight was not answered
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

import uvicorn

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

from app.bundle.store import names, versions
from app.errors import SettingsInvalid
from app.main import create_app
from app.serving import memory
from app.serving.connection import Connection
from app.serving.fast_connection import connection_factory
from app.serving.listener import accept_pending, refuse_connections
from app.settings import PREFIX, Settings
from app.telemetry.logs import log

_MOMENT_S = 1.0  # in which a client that is about to ask again on its connection has done so
_TURNS = 10  # of the loop that it has at least, where the machine is short of time
_HANDSHAKE_S = 0.05  # in which who was about to connect has connected
_DESCRIPTORS = 256  # beside connections: models, pools, the log
_GRACE_S = 1.0  # beyond `drain_s`, for what does not stop when it is told to


def serve(
    settings: Settings,
    listen: Callable[[], socket.socket],
    ready: Callable[[socket.socket], None],
    has_parent: bool = False,
) -> int:
    """Until a signal ends it; the exit status, 1 where requests were left unanswered. `ready` is called once requests
    are answered.

    A parent may ask more than once for the end, and kills where it is to come at once.
    """
    _require_bundles(settings)
    memory.use_one_arena()
    _allow_descriptors(2 * settings.max_connections + _DESCRIPTORS)
    try:
        app = create_app(settings, on_freed=memory.trim)
    except OSError as error:
        mend = "where several workers count together they write there; make room, or set TMPDIR to another folder"
        raise SettingsInvalid(f"{error.filename}: {error.strerror}: {mend}") from None
    listener = listen()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata in a client's image is not our operator's affair
    config = uvicorn.Config(
        app,
        http=connection_factory(  # type: ignore[arg-type]  # it is only called
            app.state.fast_path, settings.head_timeout_s, settings.keep_alive_s, settings.max_connections
        ),
        log_level="warning",
        log_config=None,  # ours shows its lines too
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=settings.drain_s,
    )
    server = _Server(config, settings.drain_s, lambda: ready(listener), app.state.repository.leave, has_parent)
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
    ) -> None:
        super().__init__(config)
        self._drain_s, self._ready, self._leave, self._has_parent = drain_s, ready, leave, has_parent
        self._dropped = 0  # requests that were in flight when their time was over

    @property
    def status(self) -> int:
        """To exit with."""
        return 1 if self._dropped or self._in_flight() else 0

    def _in_flight(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection) and each.busy]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a stop that was asked for ends in success: the signal is not raised again."""
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
        threading.Thread(target=self._end, name="graft-end", daemon=True).start()

    def _end(self) -> None:
        """A thread that hangs, in a graph say, would keep the process for good."""
        time.sleep(self._drain_s + _GRACE_S)
        log.warning("not at rest %g s after it was asked to end: ended all the same", self._drain_s + _GRACE_S)
        os._exit(self.status)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            memory.freeze()
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        began = time.monotonic()
        listeners, state = sockets or [], self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        if not self._has_parent:  # which has done so for all its workers
            for listener in listeners:
                refuse_connections(listener)
            await asyncio.sleep(_HANDSHAKE_S)
        for connection in state.connections:
            assert isinstance(connection, Connection)
            if connection.busy:
                connection.shutdown()  # after its answer, which says so
        await self._let_in(listeners)
        moment, turns = time.monotonic() + min(_MOMENT_S, self._drain_s / 2), 0
        while state.connections and (time.monotonic() < moment or turns < _TURNS):  # of their end nobody tells
            await asyncio.sleep(0.01)
            turns += 1
        for connection in list(state.connections):
            connection.shutdown()
        while self._in_flight() and time.monotonic() - began < self._drain_s:  # noqa: ASYNC110  # of this neither
            await asyncio.sleep(0.01)
        self._drop()
        left = self._drain_s - (time.monotonic() - began)
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # a float serves as well
        await super().shutdown(sockets)
        for connection in list(state.connections):  # what a connection answers itself uvicorn does not know of
            connection.transport.abort()
        await asyncio.sleep(0)

    def _drop(self) -> None:
        """What is still in flight when its time is over."""
        self._dropped = len(self._in_flight())
        if self._dropped:
            log.warning("requests not answered within %d s, and dropped: %d", self._drain_s, self._dropped)
        for connection in self._in_flight():
            connection.transport.abort()

    async def _let_in(self, listeners: Sequence[socket.socket]) -> None:
        """Everybody who has connected: the system turns away whom it has kept waiting when listening ends, and the
        loop would let one in at a turn."""
        spares = [listener.dup() for listener in listeners]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        came = [accepted for spare in spares for accepted in accept_pending(spare)]
        loop = asyncio.get_running_loop()
        for each in came:
            await loop.connect_accepted_socket(self._protocol, each)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]


def _allow_descriptors(wanted: int) -> None:
    """As many open files as connections need, within what the system lets a process allow itself."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # where it may not, the default is what there is
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _require_bundles(settings: Settings) -> None:
    """Where models come and go, there need not be any yet."""
    models = settings.models
    mend = f"train one with `make train RECIPE=seed`, or set {PREFIX}MODELS to a folder of bundles"
    if not os.path.isdir(models):  # which takes what is no path at all for what is not there
        raise SettingsInvalid(f"{PREFIX}MODELS={models}: there is no such folder; {mend}")
    if settings.model_control != "none":
        return
    if not any(versions(models / name) for name in names(models)):
        raise SettingsInvalid(f"{PREFIX}MODELS={models}: no <name>/<version>/ in it; {mend}")
    wanted = settings.default_model
    if wanted is not None and wanted not in names(models):
        found = ", ".join(names(models))
        raise SettingsInvalid(f"{PREFIX}DEFAULT_MODEL={wanted}: not in {models}; there is: {found}")
