"""/openapi.json, which /docs draws: what is said of the API is what the API does."""

from typing import Any

from fastapi import FastAPI

from app.api.middleware.access import OPEN


def correct_schema(app: FastAPI, keyed: bool) -> None:
    """FastAPI promises a 422 of its own shape wherever a parameter can be wrong; Graft answers 400 there.

    And it says of a parameter that may be absent that it may be null, which nothing in an address or a header can be.
    Of keys it knows nothing: where the service is `keyed`, it is said how they are sent, and where none is needed.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            for path in schema["paths"].values():
                for operation in path.values():
                    promised = operation["responses"].get("422", {}).get("content", {})
                    if "HTTPValidationError" in str(promised):
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
    kinds: list[dict[str, Any]] = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {name: value for name, value in schema.items() if name != "anyOf"} | kinds[0]
