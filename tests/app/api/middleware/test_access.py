from pathlib import Path

import httpx
import pytest
from support import assert_problem, serving

from app.api.middleware.access import keys_of
from app.errors import SettingsInvalid
from app.settings import Settings

CLOSED = ("/v1/models", "/v1/models/tiny/card", "/openapi.json", "/nothing", "/metrics")


@pytest.mark.parametrize("path", CLOSED)
def test_without_keys_every_route_is_open(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code != 401


def test_with_keys_every_route_but_health_needs_one(models: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("from-file\n\n other \n")
    settings = Settings(models=models, api_keys="first, second", api_keys_file=tmp_path / "keys")
    with serving(settings) as client:
        for path in CLOSED:
            answer = client.get(path)
            assert_problem(answer, 401, "unauthorised")
            assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("firs", "first ,", "first,second", "", "ünï"):
            headers = {"X-API-Key": wrong.encode()}
            assert_problem(client.get("/v1/models", headers=headers), 401, "unauthorised")
        for key in ("first", "second", "from-file", "other"):
            assert client.get("/v1/models", headers={"X-API-Key": key}).status_code == 200
            assert client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200
        for path in ("/healthz", "/readyz"):
            assert client.get(path).status_code == 200


def test_a_refused_request_is_not_read(models: Path) -> None:
    """The missing key is reported before the body that is too large."""
    with serving(Settings(models=models, api_keys="k", max_body_mb=1)) as client:
        answer = client.post("/v1/classify", content=b"x" * 2_000_000, headers={"content-type": "image/png"})
        assert_problem(answer, 401, "unauthorised")


def test_metrics_may_have_a_key_of_their_own(models: Path) -> None:
    for api_keys in (None, "k"):
        with serving(Settings(models=models, api_keys=api_keys, metrics_key="m")) as client:
            assert client.get("/metrics", headers={"X-API-Key": "k"}).status_code == 401
            assert client.get("/metrics", headers={"X-API-Key": "m"}).status_code != 401
            assert client.get("/v1/models", headers={"X-API-Key": "m"}).status_code == (401 if api_keys else 200)


def test_under_a_prefix_health_is_open_too(models: Path) -> None:
    with serving(Settings(models=models, api_keys="k", root_path="/graft")) as client:
        assert client.get("/graft/healthz").status_code == 200
        assert client.get("/healthz").status_code == 200
        assert client.get("/graft/v1/models").status_code == 401


@pytest.mark.parametrize(("content", "output"), [(None, "cannot be read"), ("\n \n", "the file has no key")])
def test_a_file_without_keys_stops_the_start(tmp_path: Path, content: str | None, output: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsInvalid, match=output):
        keys_of(Settings(api_keys_file=path))


def test_other_pages_may_call_only_if_the_setting_says_so(client: httpx.Client, models: Path) -> None:
    requested = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/classify", headers=requested).headers
    settings = Settings(models=models, api_keys="k", cors_origins="https://shop.example, https://lab.example")
    with serving(settings) as open_client:
        allowed = open_client.options("/v1/classify", headers=requested)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        refused = open_client.options("/v1/classify", headers=requested | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in refused.headers
        output = open_client.get("/healthz", headers={"Origin": "https://shop.example"})
        assert "X-Request-ID" in output.headers["access-control-expose-headers"]
        unauthorised = open_client.get("/v1/models", headers={"Origin": "https://shop.example"})
        assert unauthorised.headers["access-control-allow-origin"] == "https://shop.example", "a page may read why"
