"""The plainest requests, which are most: straight to their operation, past what FastAPI does for the others.

An operation is an ordinary function of a call and its images, an inference one of a request and its call. FastAPI finds
it, reads its parameters, and resolves what it depends on, which takes longer than many a model; here a request without
parameters is recognised by its path. Whatever else it may be, a parameter, a deadline of its own, another method, goes
on to FastAPI, and has the same function answer it.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.call import Call, Operation
from app.api.middleware.root_path import PROTOCOL, route_path
from app.api.problems import answer_to
from app.api.request_body import read_images
from app.errors import GraftError
from app.telemetry.requests import DEADLINE_PASSED, current_record

Inference = Callable[[Request, Call], Awaitable[Response]]
INFER = "infer"  # what metrics and logs call it
_MODELS, _INFER = f"{PROTOCOL}/models/", "/infer"


class Direct:
    def __init__(self, app: ASGIApp, operations: Mapping[str, Operation], inference: Inference) -> None:
        """`operations` by path; `inference` is /v2's, whose path says the model."""
        self.app, self._operations, self._inference = app, operations, inference

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (late := scope.get("state", {}).get(DEADLINE_PASSED)):
            error, known = late
            own = current_record()
            own.operation, own.model, own.version, own.images = (
                known.operation, known.model, known.version, known.images,
            )  # fmt: skip
            await answer_to(error)(scope, receive, send)
            return
        answering = self._recognised(Request(scope, receive)) if scope["type"] == "http" else None
        if answering is None:
            await self.app(scope, receive, send)
            return
        try:
            answer = await answering
        except GraftError as error:
            answer = answer_to(error)
        await answer(scope, receive, send)

    def _recognised(self, request: Request) -> Awaitable[Response] | None:
        scope = request.scope
        if scope["method"] != "POST" or scope["query_string"]:
            return None
        accept = None
        for name, value in scope["headers"]:
            if name == b"x-timeout-ms":
                return None
            if name == b"accept" and accept is None:
                accept = value.decode("latin-1")
        path = route_path(scope)
        operation = self._operations.get(path)
        if operation is not None:
            return _operated(operation, Call(request, accept=accept))
        model = inferred(path)
        if model is None:
            return None
        current_record().operation = INFER
        return self._inference(request, Call(request, model))


async def _operated(operation: Operation, call: Call) -> Response:
    current_record().operation = operation.__name__
    call.require_room()
    images = await read_images(call.request)
    return await call.answered(images, operation(call, images))


def inferred(path: str) -> str | None:
    """/v2/models/NAME[/versions/VERSION]/infer → NAME[@VERSION]"""
    if not (path.startswith(_MODELS) and path.endswith(_INFER)):
        return None
    name, versions, version = path[len(_MODELS) : -len(_INFER)].partition("/versions/")
    if not name or "/" in name + version or bool(versions) != bool(version):
        return None
    return f"{name}@{version}" if version else name
