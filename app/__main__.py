"""`python -m app`, and `graft-serve`: starts the service, or says in a sentence why it cannot."""

import argparse
import contextlib
import os
import shlex
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from app import __version__
from app.bundle.store import names, versions
from app.errors import SettingsInvalid
from app.main import create_app
from app.observability import configure_logs
from app.settings import PREFIX, Settings, load_settings

SAMPLE = Path(__file__).parent / "web" / "samples" / "t-shirt.png"
BACKLOG = 2048  # connections that wait to be accepted
DRAIN_S = 10  # what a stop leaves for requests in flight


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(_parser().parse_args(arguments))
    try:
        settings = load_settings(**given)
        _require_bundles(settings)
        configure_logs()
        app = create_app(settings)
        listener = _listen(settings)
    except SettingsInvalid as error:
        print(f"graft: {error}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata in a client's image is not our operator's affair
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = _Server(config)
    server.run([listener])
    return 0 if server.started else 1


class _Server(uvicorn.Server):
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
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            _announce(host, port)


def _announce(host: str, port: int) -> None:
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    url = f"http://{address}:{port}"
    sample = shlex.quote(os.path.relpath(SAMPLE))
    print(f"Graft {__version__} answers at {url}/docs\n  curl -F image=@{sample} {url}/v1/classify", flush=True)


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


def _listen(settings: Settings) -> socket.socket:
    at = f"{settings.host}:{settings.port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # only now does the system say whether the port is free
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SettingsInvalid(
            f"cannot listen on {at}: {reason}; choose another with {PREFIX}HOST and {PREFIX}PORT "
            f"(make serve PORT={settings.port + 1 if 0 < settings.port < 65535 else 8001})"
        ) from None
    return listener


def _parser() -> argparse.ArgumentParser:
    """A flag for every setting: `--max-body-mb` for GRAFT_MAX_BODY_MB. Values are checked by Settings."""
    parser = argparse.ArgumentParser(
        prog="graft-serve",
        description="Serve a folder of Graft bundles over HTTP.",
        epilog=f"Every flag is also an environment variable: --max-body-mb is {PREFIX}MAX_BODY_MB. Flags win.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"graft {__version__}")
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f" (default: {field.default})"
        metavar = name.rpartition("_")[2].upper()
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=f"{field.description}{default}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
