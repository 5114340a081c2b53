"""Web pages of other origins cannot load or unload a model; programs and the service's own pages can."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers
from support import assert_error, save_tiny, serving

from app.api.request_forgery import is_allowed
from app.settings import Settings

ALLOWED = "https://shop.example, null"
CALLS = [f"/v2/repository/models/tiny/{call}" for call in ("unload", "load")]  # what the first undoes the second does
OTHERS = [
    {"origin": "https://evil.example"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://127.0.0.1"},
    {"origin": "chrome-extension://abcdef"},
    {"origin": "not an origin"},
    {"origin": ""},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"origin": "http://localhost:8888", "sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://HOST"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=models, model_control="explicit")) as client:
        yield client


@pytest.fixture(scope="module")
def open_to_some(models: Path) -> Iterator[httpx.Client]:
    """Behind a proxy that serves it under a path, open to a shop and to pages that have no origin."""
    with serving(Settings(models=models, model_control="explicit", cors_origins=ALLOWED, root_path="/graft")) as client:
        yield client


def written(headers: dict[str, str], client: httpx.Client) -> dict[str, str]:
    return {name: value.replace("HOST", client.base_url.netloc.decode()) for name, value in headers.items()}


def is_there(client: httpx.Client) -> bool:
    return client.get("/v2/models/tiny/ready").status_code == 200


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("headers", [*OTHERS, {"origin": "null"}], ids=str)
def test_a_page_of_another_origin_changes_nothing(service: httpx.Client, call: str, headers: dict[str, str]) -> None:
    answer = service.post(call, headers=written(headers, service))
    assert_error(answer, 403, "GRAFT_CORS_ORIGINS names those that may")
    assert is_there(service)
    assert 'graft_requests_refused_total{type="cross-origin"}' in service.get("/metrics").text


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_nor_does_one_that_is_not_named_where_others_are(
    open_to_some: httpx.Client, call: str, headers: dict[str, str]
) -> None:
    for path in (call, f"/graft{call}"):
        assert_error(open_to_some.post(path, headers=written(headers, open_to_some)), 403, "GRAFT_CORS_ORIGINS")
    assert is_there(open_to_some)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://HOST"},
        {"origin": "http://HOST", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": "null", "sec-fetch-site": "same-origin"},  # withheld by the page's own Referrer-Policy
        {"origin": "https://HOST"},  # of a proxy that ends TLS and does not say so
        {"origin": "https://graft.example", "host": "graft.example:443", "x-forwarded-proto": "https"},
        {"origin": "https://graft.example", "x-forwarded-host": "Graft.example, inner", "x-forwarded-proto": "https"},
    ],
    ids=str,
)
def test_a_program_and_a_page_of_its_own_may(service: httpx.Client, headers: dict[str, str]) -> None:
    for call, there in zip(CALLS, (False, True), strict=True):
        assert service.post(call, headers=written(headers, service)).status_code == 200
        assert is_there(service) == there


@pytest.mark.parametrize(
    "headers", [{"origin": "https://shop.example", "sec-fetch-site": "cross-site"}, {"origin": "null"}], ids=str
)
def test_a_page_of_an_origin_that_is_named_may(open_to_some: httpx.Client, headers: dict[str, str]) -> None:
    for call, there in zip(CALLS, (False, True), strict=True):
        assert open_to_some.post(f"/graft{call}", headers=headers).status_code == 200
        assert is_there(open_to_some) == there


@pytest.mark.parametrize(
    ("headers", "scheme", "allowed", "may"),
    [
        ({"origin": "http://a", "host": "a"}, "https", (), False),  # a page that was not encrypted
        ({"origin": "http://a", "host": "a", "x-forwarded-proto": "https"}, "http", (), False),
        ({"origin": "https://a", "host": "a", "x-forwarded-proto": "https"}, "http", (), True),
        ({"origin": "http://a:80", "host": "a"}, "http", (), True),
        ({"origin": "http://a:443", "host": "a"}, "http", (), False),
        ({"origin": "http://[::1]:8000", "host": "[::1]:8000"}, "http", (), True),
        ({"origin": "http://a", "host": "b"}, "http", ("*",), True),
        ({"origin": "http://a", "host": "b"}, "http", ("https://a",), False),
    ],
)
def test_scheme_host_and_port_all_count(
    headers: dict[str, str], scheme: str, allowed: tuple[str, ...], may: bool
) -> None:
    assert is_allowed(Headers(headers), scheme, allowed) is may


def test_every_origin_there_is_must_be_allowed() -> None:
    both = Headers(raw=[(b"host", b"a"), (b"origin", b"http://a"), (b"origin", b"http://evil")])
    assert not is_allowed(both, "http", ())
    assert is_allowed(both, "http", ("http://evil",))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "declared",
    [
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "application/jsonp",
        "text/plain; application/json",
        "application/xml",
        "",
    ],
)
def test_a_body_of_a_type_that_a_form_could_have_sent_is_refused(
    service: httpx.Client, call: str, declared: str
) -> None:
    for content in (b"", b"{}"):
        answer = service.post(call, content=content, headers={"content-type": declared})
        assert_error(answer, 415, "is not JSON: send application/json, or no Content-Type")
    assert is_there(service)


@pytest.mark.parametrize(
    "declared",
    [None, "application/json", "Application/JSON; charset=utf-8", "application/vnd.a+json", "application/octet-stream"],
)
def test_json_passes_and_what_is_of_no_declared_type(service: httpx.Client, declared: str | None) -> None:
    headers = {} if declared is None else {"content-type": declared}
    for call in CALLS:
        assert service.post(call, content=b"{}", headers=headers).status_code == 200


def test_what_changes_nothing_is_open_to_all_types(service: httpx.Client) -> None:
    headers = {"origin": "https://evil.example", "content-type": "text/plain"}
    assert service.post("/v2/repository/index", content=b"{}", headers=headers).status_code == 200


def test_whoever_has_no_key_is_told_that_first(models: Path) -> None:
    with serving(Settings(models=models, model_control="explicit", api_keys="k")) as client:
        for call in CALLS:
            assert_error(client.post(call, headers={"origin": "https://evil.example"}), 401)
            assert_error(client.post(call, headers={"origin": "https://evil.example", "x-api-key": "k"}), 403)
