"""For a proxy that serves Graft under a path prefix, whether or not the proxy strips the prefix."""

from starlette.types import ASGIApp, Receive, Scope, Send

PROTOCOL = "/v2"
EMBEDDINGS = "/v1/embeddings"  # whose errors are also those of OpenAI's API


def route_path(scope: Scope) -> str:
    """The path without the prefix, as routes are declared."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def in_protocol(scope: Scope) -> bool:
    """Whether the request uses the Open Inference Protocol, whose responses have a shape of their own."""
    path = route_path(scope)
    return path == PROTOCOL or path.startswith(f"{PROTOCOL}/")


class RootPath:
    """Routes match without the prefix; URLs that Graft sends, in the OpenAPI document and in redirects, have it."""

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
            scope["route"] = prefixed.get("route")  # the request counter reads the operation from it
