"""The plainest requests, which are most: straight to their operation, past what FastAPI does for the others.

An operation is an ordinary function of a call and its images. FastAPI finds it, reads its parameters, and resolves
what it depends on, for 60 µs a request; here a request without parameters is recognised by its path. Whatever else it
may be, a parameter, a deadline of its own, another method, goes on to FastAPI, and has the same function answer it.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.call import Call
from app.api.error_handlers import answer_to
from app.api.payload import read_images
from app.api.prefix import route_path
from app.errors import GraftError
from app.observability import facts

Operation = Callable[[Call, list[bytes]], Awaitable[Response]]


class Direct:
    def __init__(self, app: ASGIApp, operations: Mapping[str, Operation]) -> None:
        """`operations` by path."""
        self.app, self._operations = app, operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = None
        if scope["type"] == "http" and scope["method"] == "POST" and not scope["query_string"]:
            operation = self._operations.get(route_path(scope))
        if operation is None:
            await self.app(scope, receive, send)
            return
        accept = None
        for name, value in scope["headers"]:
            if name == b"x-timeout-ms":
                await self.app(scope, receive, send)
                return
            if name == b"accept" and accept is None:
                accept = value.decode("latin-1")
        request = Request(scope, receive)
        facts().operation = operation.__name__
        try:
            answer = await operation(Call(request, accept=accept), await read_images(request))
        except GraftError as error:
            answer = answer_to(error)
        await answer(scope, receive, send)
