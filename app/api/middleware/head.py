"""Answers HEAD like GET without the body, so that no route has to."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
            elif not message.get("more_body", False):
                await send({"type": "http.response.body"})

        get = {**scope, "method": "GET"}  # a copy: uvicorn reads the method from its own scope
        try:
            await self.app(get, receive, without_body)
        finally:
            scope["route"] = get.get("route")  # the request counter reads the operation from it
