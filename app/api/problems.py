"""Errors → HTTP: the one table of status codes, and the one shape of an error response."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.api.middleware.root_path import EMBEDDINGS, in_protocol, route_path
from app.api.schemas import OpenAIError, Problem
from app.telemetry.logs import log
from app.telemetry.requests import current_record, request_id

STATUS: dict[type[errors.GraftError], HTTPStatus] = {
    errors.MalformedRequest: HTTPStatus.BAD_REQUEST,
    errors.UnknownModel: HTTPStatus.NOT_FOUND,
    errors.LoadingNotAllowed: HTTPStatus.FORBIDDEN,
    errors.FeedbackNotAllowed: HTTPStatus.FORBIDDEN,
    errors.RequestForgotten: HTTPStatus.NOT_FOUND,
    errors.NotStored: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.BundleError: HTTPStatus.UNPROCESSABLE_ENTITY,  # a request to load it; it failed a check
    errors.OperationUnavailable: HTTPStatus.CONFLICT,
    errors.PartMissing: HTTPStatus.NOT_FOUND,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.BodyTooSlow: HTTPStatus.REQUEST_TIMEOUT,
    errors.TooManyImages: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.TooManyPixels: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.NotAnImage: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.BrokenImage: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.DecoderEnded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unauthorised: HTTPStatus.UNAUTHORIZED,
    errors.CrossOrigin: HTTPStatus.FORBIDDEN,
    errors.NotAcceptable: HTTPStatus.NOT_ACCEPTABLE,
    errors.QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.DeadlinePassed: HTTPStatus.GATEWAY_TIMEOUT,
    errors.TooManyConnections: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NotFinite: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Refusal(Response):
    """A problem document, or under /v2 the error object of the Open Inference Protocol.

    That of /v1/embeddings has an `error` besides, which clients of OpenAI's API read.
    """

    media_type = "application/problem+json"

    def __init__(self, body: Problem, headers: dict[str, str] | None) -> None:
        super().__init__(body.model_dump_json(exclude_none=True), body.status, headers)
        self._problem, self._extra_headers = body, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if in_protocol(scope):
            await self.of_protocol()(scope, receive, send)
        elif route_path(scope) == EMBEDDINGS:
            await self._of_openai()(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def message(self, item: str = "image") -> str:
        """What is wrong, and with which item of the request."""
        problem = self._problem
        return problem.detail if problem.index is None else f"{item} {problem.index}: {problem.detail}"

    def of_protocol(self) -> Response:
        return JSONResponse({"error": self.message()}, self.status_code, self._extra_headers)

    def _of_openai(self) -> Response:
        problem = self._problem
        kind = "invalid_request_error" if problem.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        error = OpenAIError(message=self.message("input"), type=kind, param=None, code=problem.type.rpartition(":")[2])
        body = problem.model_dump(exclude_none=True) | {"error": error.model_dump()}
        return JSONResponse(body, problem.status, self._extra_headers, media_type=self.media_type)


def problem(
    status: int, kind: str, detail: str, index: int | None = None, headers: dict[str, str] | None = None
) -> Refusal:
    """The response; its kind also goes into the request's record, which is counted and logged."""
    current_record().problem = kind
    return Refusal(_body(status, kind, detail, index), headers)


def _body(status: int, kind: str, detail: str, index: int | None) -> Problem:
    return Problem(
        type=f"urn:graft:problem:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        request_id=request_id.get(),
        index=index,
    )


def problem_of_image(error: errors.GraftError, index: int) -> dict[str, Any]:
    """What stands in the place of a bad image's result in a partial answer."""
    return _body(_status_of(error), kind_of(error), str(error), index).model_dump()


def kind_of(error: errors.GraftError) -> str:
    return errors.kebab(type(error).__name__)


def _status_of(error: errors.GraftError) -> HTTPStatus:
    """By the table. Errors not in it are not the client's fault, and are raised again."""
    status = next((STATUS[c] for c in type(error).__mro__ if c in STATUS), None)
    if status is None:
        raise error
    return status


_PROBLEM_SCHEMA = Problem.model_json_schema()


def documented(*statuses: int, schema: dict[str, Any] = _PROBLEM_SCHEMA) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: these statuses have a Problem as their body."""
    content = {"application/problem+json": {"schema": schema}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


class UnexpectedErrors:
    """Answers 500 to a request that raises an unexpected exception; the connection stays open."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except ClientDisconnect:
            pass  # nobody to answer; the request is logged with status 499
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            log.error("unexpected %s", type(error).__name__, exc_info=error)
            detail = "an error in the service; its log has the cause under this request_id"
            answer = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-server-error", detail)
            await answer(scope, receive, send)


def answer_to(error: errors.GraftError) -> Refusal:
    """The response that the table gives."""
    status = _status_of(error)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s", error)
    headers = {}
    if isinstance(error, errors.QueueFull):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.BodyTooSlow):
        headers["Connection"] = "close"  # or the rest of the body would keep arriving
    return problem(status, kind_of(error), str(error), index=getattr(error, "index", None), headers=headers)


def install(app: FastAPI) -> None:
    async def on_graft_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, errors.GraftError)
        return answer_to(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        detail = {
            HTTPStatus.NOT_FOUND: f"nothing at {request.url.path}; /docs lists all routes",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{request.url.path} does not accept {request.method}",
        }.get(status, str(error.detail))
        headers = dict(error.headers or {})
        allowed = headers.get("Allow", "").split(", ")
        if "GET" in allowed and "HEAD" not in allowed:  # the Head middleware answers it, which routes do not know
            headers["Allow"] = ", ".join([*allowed, "HEAD"])
        return problem(status, errors.kebab(status.phrase), detail, headers=headers)

    async def on_bad_query(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        messages = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {e['input']!r:.80}" for e in error.errors()]
        once = dict.fromkeys(messages)  # a parameter that a dependency reads, too, is reported for each
        return problem(HTTPStatus.BAD_REQUEST, "malformed-request", "; ".join(once))

    app.add_exception_handler(errors.GraftError, on_graft_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_query)
    app.add_middleware(UnexpectedErrors)
