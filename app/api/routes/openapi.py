"""/openapi.json, which /docs shows, corrected where FastAPI describes the API wrongly."""

from typing import Any

from fastapi import FastAPI

from app.api.middleware.access import OPEN


def correct_schema(app: FastAPI, keyed: bool) -> None:
    """FastAPI documents 422 for invalid parameters, where Graft answers 400, and null for optional ones, which no query
    or header can send. It knows nothing of API keys: if the service is `keyed`, add how and where they are sent.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            for path in schema["paths"].values():
                for operation in path.values():
                    unprocessable = operation["responses"].get("422", {}).get("content", {})
                    if "HTTPValidationError" in str(unprocessable):
                        del operation["responses"]["422"]
                    for parameter in operation.get("parameters", ()):
                        parameter["schema"] = _without_null(parameter["schema"])
            if keyed:
                _describe_keys(schema)
            for unused in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(unused, None)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_keys(schema: dict[str, Any]) -> None:
    schema.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    schema["security"] = [{"bearer": []}, {"key": []}]
    for path in OPEN & schema["paths"].keys():
        for operation in schema["paths"][path].values():
            operation["security"] = []


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    types: list[dict[str, Any]] = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(types) != 1:
        return schema
    return {name: value for name, value in schema.items() if name != "anyOf"} | types[0]
