"""HEAD is answered as GET would be, without the body. No route needs to know of it."""

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

        get = {**scope, "method": "GET"}  # a copy: the server goes by its own
        try:
            await self.app(get, receive, without_body)
        finally:
            scope["route"] = get.get("route")  # by which whoever counts requests knows the operation
