"""Calls the operation of a plain request directly, without FastAPI's routing and dependencies.

FastAPI finds the route, reads its parameters and resolves its dependencies, which takes longer than many a model does.
A request without parameters can be recognised by its path alone. All others go on to FastAPI, which calls the same
function: those with a query string, with a deadline of their own, or with another method.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.call import Call, OperationFunction
from app.api.middleware.root_path import PROTOCOL, route_path
from app.api.problems import answer_to
from app.api.request_body import read_images
from app.errors import GraftError
from app.telemetry.requests import DEADLINE_PASSED, RequestRecord, current_record

InferFunction = Callable[[Request, Call], Awaitable[Response]]
INFER = "infer"  # its name in metrics and logs
_MODELS, _INFER = f"{PROTOCOL}/models/", "/infer"


class Dispatch:
    def __init__(self, app: ASGIApp, operations: Mapping[str, OperationFunction], infer: InferFunction) -> None:
        """`operations` by path; `infer` answers /v2's infer requests, whose path names the model."""
        self.app, self._operations, self._infer = app, operations, infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (late := scope.get("state", {}).get(DEADLINE_PASSED)):
            await _refuse_late(late, scope, receive, send)
            return
        answering = self._start(Request(scope, receive)) if scope["type"] == "http" else None
        if answering is None:
            await self.app(scope, receive, send)
            return
        try:
            answer = await answering
        except GraftError as error:
            answer = answer_to(error)
        await answer(scope, receive, send)

    def _start(self, request: Request) -> Awaitable[Response] | None:
        """The coroutine that answers the request, or None if FastAPI has to."""
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
            return _run(operation, Call(request, accept=accept))
        model = infer_model(path)
        if model is None:
            return None
        current_record().operation = INFER
        return self._infer(request, Call(request, model))


async def _refuse_late(late: tuple[GraftError, RequestRecord], scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for the fast path, which missed the deadline and has filled in the record."""
    error, known = late
    record = current_record()
    record.operation, record.model, record.version, record.images = (
        known.operation, known.model, known.version, known.images,
    )  # fmt: skip
    await answer_to(error)(scope, receive, send)


async def _run(operation: OperationFunction, call: Call) -> Response:
    current_record().operation = operation.__name__
    call.require_room()
    images = await read_images(call.request)
    return await call.run(images, operation(call, images))


def infer_model(path: str) -> str | None:
    """/v2/models/NAME[/versions/VERSION]/infer → NAME[@VERSION]"""
    if not (path.startswith(_MODELS) and path.endswith(_INFER)):
        return None
    name, versions, version = path[len(_MODELS) : -len(_INFER)].partition("/versions/")
    if not name or "/" in name + version or bool(versions) != bool(version):
        return None
    return f"{name}@{version}" if version else name
