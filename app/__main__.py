"""`python -m app`, and `graft-serve`: starts the service, or says in a sentence why it cannot.

`python -m app score …` does offline what the service does: app/score.
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
from app.telemetry.metrics import FOLDER, shared_folder, worker_gone
from app.telemetry.requests import configure_logs, log

SAMPLE = Path(__file__).parent / "web" / "samples" / "t-shirt.png"
BACKLOG = 2048  # connections that wait to be accepted


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["score"]:
        from app.score.command import main as score  # each command imports what it needs, and no more

        return score(arguments[1:])
    try:
        given = vars(_parser().parse_args(arguments))
        settings = load_settings(**given)
        configure_logs(settings.log_format)
        handed = workers.handed_over()
        if handed is not None:
            return _work(settings, *handed)
        for name, meant in mistyped(os.environ).items():
            log.warning("%s is no setting, and does nothing: %s was meant?", name, meant)
        if settings.workers > 1:
            return _supervise(settings, arguments)
        return _serve(settings)
    except SettingsInvalid as error:
        print(f"graft: {error}", file=sys.stderr)
        return workers.UNUSABLE


def _serve(settings: Settings) -> int:
    from app.serving.server import serve  # here, as a parent of workers does without it and its 50 MB

    return serve(settings, lambda: _listen(settings), _announce)


def _work(settings: Settings, listener: socket.socket, channel: socket.socket) -> int:
    workers.end_with_parent(channel, settings.drain_s)
    from app.serving.server import serve

    return serve(settings, lambda: listener, lambda _: workers.tell_ready(channel), has_parent=True)


def _supervise(settings: Settings, arguments: Sequence[str]) -> int:
    listener = _listen(settings)
    # `-m` looks into the folder it is called in, where another `app` may lie: only if this process does so too.
    safely = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    command = [sys.executable, *safely, "-m", "app", *arguments]
    with shared_folder() as folder:  # in which the workers count together

        def gone(process: int) -> None:
            worker_gone(process, folder[FOLDER])

        return workers.Supervisor(
            command, listener, settings.workers, settings.drain_s, lambda: _announce(listener), gone, folder
        ).run()


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    url = f"http://{address}:{port}"
    sample = shlex.quote(os.path.relpath(SAMPLE))
    print(f"Graft {__version__} answers at {url}\n  curl -F image=@{sample} {url}/v1/classify", flush=True)


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
    """A flag for every setting but keys: `--max-body-mb` for GRAFT_MAX_BODY_MB. Values are checked by Settings."""
    parser = argparse.ArgumentParser(
        prog="graft-serve",
        description="Serve a folder of Graft bundles over HTTP.",
        epilog=f"Every flag is also an environment variable: --max-body-mb is {PREFIX}MAX_BODY_MB. Flags win. "
        f"Keys are no flags, or `ps` would show them: set {', and '.join(SECRETS.values())}. "
        "`graft-serve score --help` is about files and folders, without a service.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"graft {__version__}")
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            parser.add_argument(_flag(name), action=_Refused, nargs="?", help=argparse.SUPPRESS)
            continue
        default = "" if field.default in (None, "") else f" (default: {field.default})"
        metavar = name.rpartition("_")[2].upper()
        parser.add_argument(_flag(name), metavar=metavar, help=f"{field.description}{default}")
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _Refused(argparse.Action):
    """The key itself is not repeated: what is said here ends in logs."""

    def __call__(self, _: object, namespace: object, values: object, option_string: str | None = None) -> None:
        raise SettingsInvalid(
            f"{option_string}: everybody who lists this machine's processes would see the key: "
            f"set {SECRETS[self.dest]}; then choose another key, as this one has been shown"
        )


if __name__ == "__main__":
    sys.exit(main())
