"""`python -m app` and `graft-serve` start the service, or say in one sentence why it cannot start.

`python -m app score …` is the offline scorer in app/score.
"""

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from app import __version__
from app.errors import SettingsInvalid
from app.serving import workers
from app.settings import PREFIX, SECRETS, Settings, load_settings, mistyped
from app.telemetry.logs import configure_logs, log
from app.telemetry.multiprocess import FOLDER, shared_folder, worker_gone

SAMPLE = Path(__file__).parent / "web" / "samples" / "t-shirt.png"
BACKLOG = 2048  # most connections that wait to be accepted


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["score"]:
        from app.score.command import main as score  # here, so that the service does not import it

        return score(arguments[1:])
    try:
        options = vars(_parser().parse_args(arguments))
        settings = load_settings(**options)
        configure_logs(settings.log_format)
        from_parent = workers.handed_over()
        if from_parent is not None:
            return _work(settings, *from_parent)
        for name, similar in mistyped(os.environ).items():
            log.warning("%s is not a setting and has no effect: did you mean %s?", name, similar)
        if settings.workers > 1:
            return _supervise(settings, arguments)
        return _serve(settings)
    except SettingsInvalid as error:
        print(f"graft: {error}", file=sys.stderr)
        return workers.UNUSABLE


def _serve(settings: Settings) -> int:
    from app.serving.server import serve  # here, because it takes 50 MB, which a parent of workers need not load

    return serve(settings, lambda: _listen(settings), _announce)


def _work(settings: Settings, listener: socket.socket, channel: socket.socket) -> int:
    workers.exit_with_parent(channel, settings.drain_s)
    from app.serving.server import serve

    return serve(settings, lambda: listener, lambda _: workers.report_ready(channel), has_parent=True)


def _supervise(settings: Settings, arguments: Sequence[str]) -> int:
    listener = _listen(settings)
    # `-m` imports from the current folder, which may have another `app`: -P forbids it unless this process does it too.
    safe_path = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    command = [sys.executable, *safe_path, "-m", "app", *arguments]
    with shared_folder() as folder:  # of the workers' metrics

        def on_exit(process: int) -> None:
            worker_gone(process, folder[FOLDER])

        return workers.Supervisor(
            command,
            listener,
            workers=settings.workers,
            drain_s=settings.drain_s,
            ready=lambda: _announce(listener),
            on_exit=on_exit,
            environment=folder,
        ).run()


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    url = f"http://{address}:{port}"
    sample = shlex.quote(os.path.relpath(SAMPLE))
    print(f"Graft {__version__} answers at {url}\n  curl -F image=@{sample} {url}/v1/classify", flush=True)


def _listen(settings: Settings) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # raises if the port is in use
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SettingsInvalid(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; set {PREFIX}HOST or {PREFIX}PORT to another "
            f"(make serve PORT={settings.port + 1 if 0 < settings.port < 65535 else 8001})"
        ) from None
    return listener


def _parser() -> argparse.ArgumentParser:
    """An option for every setting except keys: `--max-body-mb` for GRAFT_MAX_BODY_MB. Settings checks the values."""
    parser = argparse.ArgumentParser(
        prog="graft-serve",
        description="Serve a folder of Graft bundles over HTTP.",
        epilog=f"Every option is also an environment variable: --max-body-mb is {PREFIX}MAX_BODY_MB. Options take "
        f"precedence. Keys are not options, because `ps` would show them: set {', and '.join(SECRETS.values())}. "
        "To score files and folders without a service, see `graft-serve score --help`.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"graft {__version__}")
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            parser.add_argument(_option(name), action=_RefuseKey, nargs="?", help=argparse.SUPPRESS)
            continue
        default = "" if field.default in (None, "") else f" (default: {field.default})"
        metavar = name.rpartition("_")[2].upper()
        text = f"{field.description}{default}".replace("%", "%%")  # argparse formats help texts
        parser.add_argument(_option(name), metavar=metavar, help=text)
    return parser


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _RefuseKey(argparse.Action):
    """The message must not contain the key, because it may end up in logs."""

    def __call__(self, _: object, namespace: object, values: object, option_string: str | None = None) -> None:
        raise SettingsInvalid(
            f"{option_string}: everybody who can list this machine's processes would see the key: "
            f"set {SECRETS[self.dest]} instead, to a new key, because this one has been exposed"
        )


if __name__ == "__main__":
    sys.exit(main())
