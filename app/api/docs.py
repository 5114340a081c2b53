"""/docs and /openapi.json: what is said of the API is what the API does."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

PAGE = Path(__file__).parent.parent / "web" / "docs.html"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    return HTMLResponse(PAGE.read_text())


def tell_the_truth(app: FastAPI) -> None:
    """FastAPI promises a 422 of its own shape wherever a parameter can be wrong; Graft answers 400 there."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            for path in schema["paths"].values():
                for operation in path.values():
                    promised = operation["responses"].get("422", {}).get("content", {})
                    if "HTTPValidationError" in str(promised):
                        del operation["responses"]["422"]
            for unused in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(unused, None)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
