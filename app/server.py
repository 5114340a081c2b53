"""One process that serves: uvicorn around the app. Whoever only supervises such processes never imports this."""

import contextlib
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator

import uvicorn

from app.bundle.store import names, versions
from app.errors import SettingsInvalid
from app.main import create_app
from app.settings import PREFIX, Settings


def serve(
    settings: Settings, listen: Callable[[], socket.socket], ready: Callable[[socket.socket], None], drain_s: int
) -> int:
    """Until a signal ends it; the exit status. `ready` is called once requests are answered."""
    _require_bundles(settings)
    app = create_app(settings)
    listener = listen()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata in a client's image is not our operator's affair
    config = uvicorn.Config(
        app,
        log_level="warning",
        log_config=None,  # ours shows its lines too
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=drain_s,
    )
    server = _Server(config, lambda: ready(listener))
    server.run([listener])
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a stop that was asked for ends in success: the signal is not raised again."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def _require_bundles(settings: Settings) -> None:
    models = settings.models
    mend = f"train one with `make train RECIPE=seed`, or set {PREFIX}MODELS to a folder of bundles"
    if not os.path.isdir(models):  # which takes what is no path at all for what is not there
        raise SettingsInvalid(f"{PREFIX}MODELS={models}: there is no such folder; {mend}")
    if not any(versions(models / name) for name in names(models)):
        raise SettingsInvalid(f"{PREFIX}MODELS={models}: no <name>/<version>/ in it; {mend}")
    wanted = settings.default_model
    if wanted is not None and wanted not in names(models):
        found = ", ".join(names(models))
        raise SettingsInvalid(f"{PREFIX}DEFAULT_MODEL={wanted}: not in {models}; there is: {found}")
