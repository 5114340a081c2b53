"""/ and /models/{name}: the pages, and under /web what they are made of. No build step, nothing from outside."""

from os import PathLike, stat_result
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parents[2] / "web"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {styles}; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STYLES = {"model.html": "'self' 'unsafe-inline'"}  # a bundle's report, framed there without scripts, has its own
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked about each time: 304 while it is the same
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Files(StaticFiles):
    def file_response(
        self, full_path: "str | PathLike[str]", stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        styles = _STYLES.get(Path(full_path).name, "'self'")
        response.headers.update(_HEADERS | {"Content-Security-Policy": _POLICY.format(styles=styles)})
        return response


def install(app: FastAPI) -> None:
    """Also where keys are set, since the pages hold no data: they ask for the key themselves."""
    files = _Files(directory=FOLDER)
    router = APIRouter(include_in_schema=False)

    def page(path: str, file: str) -> None:
        async def answer(request: Request) -> Response:
            return await files.get_response(file, request.scope)

        router.add_api_route(path, answer, methods=["GET"])

    page("/", "index.html")
    page("/models/{name}", "model.html")
    page("/docs", "docs.html")
    app.include_router(router)
    app.mount("/web", files)
