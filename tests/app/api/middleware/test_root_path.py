from pathlib import Path

import pytest
from support import assert_problem, serving

from app.settings import Settings


@pytest.mark.parametrize("prefix", ["/graft", "graft/", "/of/the/shop"])
def test_a_proxy_may_strip_the_root_path_or_not(models: Path, prefix: str) -> None:
    with serving(Settings(models=models, root_path=prefix)) as client:
        path = "/" + prefix.strip("/")
        for before in ("", path):
            assert client.get(f"{before}/v1/models").status_code == 200
            assert client.get(f"{before}/openapi.json").json()["servers"] == [{"url": path}]
        assert_problem(client.get(f"{path}x/v1/models"), 404, "not-found")


def test_requests_are_counted_by_operation_under_a_prefix_too(models: Path) -> None:
    with serving(Settings(models=models, root_path="/graft")) as client:
        for path in ("/graft/v1/models", "/v1/models"):
            client.get(path).raise_for_status()
        assert (
            'graft_requests_total{model="-",operation="models",status="200",version="-"} 2.0'
            in client.get("/metrics").text
        )
