"""Behind a proxy that serves Graft under a path of its own, whether or not it strips that path."""

from starlette.types import ASGIApp, Receive, Scope, Send

PROTOCOL = "/v2"


def route_path(scope: Scope) -> str:
    """The path as routes have it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def in_protocol(scope: Scope) -> bool:
    """Whether it came by the Open Inference Protocol, which has shapes of its own."""
    path = route_path(scope)
    return path == PROTOCOL or path.startswith(f"{PROTOCOL}/")


class Prefix:
    """Routes are matched without the prefix; what is told of addresses (the OpenAPI page, redirects) has it."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self._prefix = app, "/" + prefix.strip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        stripped = not (path == self._prefix or path.startswith(self._prefix + "/"))
        prefixed = {**scope, "root_path": self._prefix, "path": self._prefix + path if stripped else path}
        try:
            await self.app(prefixed, receive, send)
        finally:
            scope["route"] = prefixed.get("route")  # by which whoever counts requests knows the operation
