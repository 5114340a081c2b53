"""Graft with a queue that stays full, or empty. Arguments: port, models, "full" or "empty"."""

import socket
import sys
from pathlib import Path

import uvicorn

from app.main import create_app
from app.serving.connection import connection_factory
from app.settings import Settings
from app.telemetry.logs import configure_logs


def main() -> None:
    port, models, queue = sys.argv[1:]
    settings = Settings(models=Path(models))
    configure_logs()
    app = create_app(settings)
    if queue == "full":
        admission = app.state.predictor.admission
        admission.hold(admission.most)  # without being asked whether there is room: some places are reserved
    limits = settings.head_timeout_s, settings.keep_alive_s, settings.max_connections
    config = uvicorn.Config(
        app,
        http=connection_factory(app.state.fast_path, *limits),
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
    )
    with socket.create_server(("127.0.0.1", int(port)), backlog=128) as listener:
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
