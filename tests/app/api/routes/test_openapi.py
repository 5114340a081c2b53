from pathlib import Path
from typing import Any

import httpx
import pytest
from support import serving

from app.settings import Settings
from app.telemetry.metrics import CONTENT_TYPE

PARTS = [f"/v1/models/{{name}}/{part}" for part in ("card", "report", "map")]
GOOD = {"/metrics": CONTENT_TYPE, PARTS[0]: "text/markdown", PARTS[1]: "text/html"}


@pytest.fixture(scope="module")
def openapi(client: httpx.Client) -> dict[str, Any]:
    schema: dict[str, Any] = client.get("/openapi.json").json()
    return schema


def test_every_route_is_described_with_the_errors_it_gives(openapi: dict[str, Any]) -> None:
    operations = {f"/v1/{name}" for name in ("classify", "encode", "reconstruct", "anomaly", "similar", "predict")}
    others = {
        "/v1/feedback",
        "/v1/decode",
        "/v1/generate",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/models/{name}/drift",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    of_models = {f"/v2/models/{{name}}{rest}" for rest in ("", "/ready", "/config", "/stats", "/infer")}
    pinned = {path.replace("{name}", "{name}/versions/{version}") for path in of_models}
    repository = {f"/v2/repository/{rest}" for rest in ("index", "models/{name}/load", "models/{name}/unload")}
    protocol = {"/v2", "/v2/health/live", "/v2/health/ready"} | of_models | pinned | repository
    assert set(openapi["paths"]) == operations | others | set(PARTS) | protocol
    for path, verbs in openapi["paths"].items():
        for operation in verbs.values():
            for status, answer in operation["responses"].items():
                good = GOOD.get(path, "application/json")
                bad = "application/json" if path in protocol else "application/problem+json"
                media = bad if int(status) >= 400 else good
                forms = {"application/x-npy", "image/png", "application/octet-stream"} if status == "200" else set()
                assert media in answer["content"], (path, status)
                assert set(answer["content"]) <= {media} | forms, (path, status)
            assert "200" in operation["responses"]
            assert "500" in operation["responses"]


def test_the_422_of_fastapis_own_shape_is_nowhere(openapi: dict[str, Any]) -> None:
    assert "ValidationError" not in str(openapi)
    assert "422" not in openapi["paths"]["/v1/models/{name}"]["get"]["responses"]


def test_a_parameter_may_be_absent_but_not_null(openapi: dict[str, Any]) -> None:
    parameters = [
        parameter
        for verbs in openapi["paths"].values()
        for operation in verbs.values()
        for parameter in operation.get("parameters", ())
    ]
    assert {"model", "top_k", "X-Timeout-Ms", "false_alarm_rate", "seed"} <= {each["name"] for each in parameters}
    for each in parameters:
        assert each["schema"]["type"] in ("string", "integer", "number", "boolean"), each
        assert each.get("description") or each["name"] in ("name", "version")


def test_the_three_bodies_of_an_operation_are_described(openapi: dict[str, Any]) -> None:
    body = openapi["paths"]["/v1/classify"]["post"]["requestBody"]
    assert set(body["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert body["required"]


def test_keys_are_told_of_where_they_are_asked_for(openapi: dict[str, Any], models: Path) -> None:
    assert "security" not in str(openapi)
    with serving(Settings(models=models, api_keys="k")) as client:
        output = client.get("/openapi.json", headers={"X-API-Key": "k"}).json()
        assert set(output["components"]["securitySchemes"]) == {"bearer", "key"}
        assert output["security"] == [{"bearer": []}, {"key": []}]
        for path, verbs in output["paths"].items():
            for operation in verbs.values():
                is_open = client.get(path).status_code == 200
                assert (operation.get("security") == []) == is_open
                assert ("401" in operation["responses"]) != is_open
