"""The gRPC server of a worker: one port, in the event loop that HTTP has, with health and reflection services."""

import asyncio
import socket

import grpc
from fastapi import FastAPI
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from app.api.middleware import access
from app.api.rpc.messages import POOL, SERVICE
from app.api.rpc.service import Service
from app.errors import SettingsInvalid
from app.inference.admission import Bytes
from app.settings import PREFIX
from app.telemetry.logs import RequestLog, log
from app.telemetry.requests import Begin

_HEALTH_S = 0.5  # between two looks at what the health service says
_IDENTITY_ALONE = 1  # a bit for each compression: a small message may be unpacked to any size


class RpcServer:
    """`stop` may be called twice; it returns when all calls have ended, or `grace` seconds have passed."""

    def __init__(self, app: FastAPI, keys: access.Keys, request_log: RequestLog, room: Bytes, begin: Begin) -> None:
        self._settings, self._repository = app.state.settings, app.state.repository
        self._service = Service(app, keys, request_log, room, begin=begin)
        self._server: grpc.aio.Server | None = None
        _require_free(self._settings.host, self._settings.grpc_port, shared=self._settings.workers > 1)
        self.port = 0
        self.dropped = 0  # calls that the end of a stop left unanswered

    async def start(self) -> None:
        settings = self._settings
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_connections,
            options=[
                ("grpc.so_reuseport", int(settings.workers > 1)),
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_connection_idle_ms", int(1000 * settings.keep_alive_s)),
                ("grpc.max_metadata_size", 64 << 10),
                ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
            ],
        )
        self._server.add_generic_rpc_handlers((self._service.handler(),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=POOL)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        await self._server.start()
        self._following = asyncio.ensure_future(self._follow())
        log.info("gRPC at %s:%d", host, self.port)

    async def _follow(self) -> None:
        """The health service says what /readyz does."""
        while True:
            ready = self._repository.ready and not self._repository.leaving
            status = health_pb2.HealthCheckResponse
            for name in ("", SERVICE.full_name):
                await self._health.set(name, status.SERVING if ready else status.NOT_SERVING)
            await asyncio.sleep(_HEALTH_S)

    async def stop(self, grace: float) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        self._following.cancel()
        self._service.end_streams()
        await self._health.enter_graceful_shutdown()
        ended = asyncio.ensure_future(server.stop(grace))
        await asyncio.wait([ended], timeout=grace)
        self.dropped = self._service.running
        await ended


def _require_free(host: str, port: int, shared: bool) -> None:
    """gRPC itself says too late, and to its own log, that it cannot listen. With `shared` other workers may do so."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SettingsInvalid(f"{PREFIX}GRPC_PORT={port}: cannot listen on {host}: {reason}; set another") from None
