"""The web pages /, /models/{name} and /docs, and their files under /web. No build step, nothing from other hosts."""

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
_STYLES = {"model.html": "'self' 'unsafe-inline'"}  # it frames a bundle's report, which has inline styles
_HEADERS = {
    "Cache-Control": "no-cache",  # cached, and revalidated on each use: 304 while unchanged
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
    """The pages need no API key, since they hold no data; they ask for the key themselves."""
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
