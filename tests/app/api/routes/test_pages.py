import re

import httpx
import pytest
from support import assert_problem, serving

from app.api.routes.pages import FOLDER
from app.settings import Settings

PAGES = {"/": "index.html", "/models/tiny": "model.html", "/models/tiny@1": "model.html", "/docs": "docs.html"}
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*"))


def directives(answer: httpx.Response) -> dict[str, str]:
    output = answer.headers["content-security-policy"].split(";")
    return dict(part.strip().split(" ", 1) for part in output)


@pytest.mark.parametrize(("path", "file"), PAGES.items())
def test_the_pages_are_the_files(client: httpx.Client, path: str, file: str) -> None:
    answer = client.get(path)
    assert answer.content == (FOLDER / file).read_bytes()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert client.head(path).status_code == 200


@pytest.mark.parametrize("path", [*PAGES, *(f"/web/{file}" for file in FILES)])
def test_nothing_that_was_not_served_here_can_run_or_be_loaded(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    output = directives(answer)
    assert (output["default-src"], output["base-uri"], output["frame-ancestors"]) == ("'none'",) * 3
    assert (output["script-src"], output["connect-src"], output["img-src"]) == (
        "'self'",
        "'self'",
        "'self' data: blob:",
    )
    framing = "model.html" in (PAGES.get(path), path.removeprefix("/web/"))
    assert output["style-src"] == ("'self' 'unsafe-inline'" if framing else "'self'")


@pytest.mark.parametrize("file", [file for file in FILES if not file.endswith(".png")])
def test_every_address_is_relative_and_leads_somewhere(client: httpx.Client, file: str) -> None:
    text = (FOLDER / file).read_text()
    assert not re.search(r"""(?:src|href|url|import|from)\s*[=(]?\s*["'(](?:https?:)?//""", text)
    page = next((path for path, name in PAGES.items() if name == file), f"/web/{file}")
    for address in re.findall(r'(?:\b(?:src|href)=|\bfrom )"([^"#]+)"', text):
        if address.startswith(("models/", "openapi")):
            continue
        assert not address.startswith("/"), address
        assert client.get(str(client.base_url.join(page).join(address))).status_code == 200, address


def test_what_a_browser_has_it_need_not_load_again(client: httpx.Client) -> None:
    first = client.get("/web/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/web/style.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_playground_is_light() -> None:
    """With what it asks the service for it stays below 100 KB; the tests of the pages weigh that."""
    others = ("docs.html", "docs.js", "live.js", "model.html", "model.js", "pages.css")
    others += ("regions.js", "similar.js")  # for models that have them
    assert sum((FOLDER / file).stat().st_size for file in FILES if file not in others) < 75_000


def test_what_is_not_there_is_a_problem(client: httpx.Client) -> None:
    for path in ("/web/none.js", "/web/../main.py", "/web/%2e%2e/main.py", "/web/"):
        assert_problem(client.get(path), 404, "not-found")
    assert_problem(client.post("/"), 405, "method-not-allowed")


def test_where_keys_are_set_the_pages_are_still_there_to_ask_for_them(models: object) -> None:
    for prefix in ("", "/graft"):
        with serving(Settings(models=models, api_keys="k", root_path=prefix)) as client:
            for path in (*PAGES, "/web/api.js"):
                assert client.get(prefix + path).status_code == 200
            for path in ("/v1/models/tiny", "/openapi.json", "/web", "/models", "//v1/models"):
                assert client.get(prefix + path).status_code == 401


def test_a_prefix_without_its_slash_leads_to_the_page(models: object) -> None:
    with serving(Settings(models=models, root_path="/graft", api_keys="k")) as client:
        answer = client.get("/graft", follow_redirects=True)
        assert answer.url.path == "/graft/"
        assert answer.content == (FOLDER / "index.html").read_bytes()
