"""One shape for every failure, and one table that misses none."""

import inspect
import logging
from pathlib import Path

import httpx
import pytest
from support import assert_problem, serving

from app import errors
from app.api.problems import STATUS, documented
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.inference.predictor import PredictionTask, Predictor
from app.main import create_app
from app.settings import Settings


def test_every_error_that_a_request_can_meet_has_a_status() -> None:
    met = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.GraftError)]
    never = (errors.SettingsInvalid, errors.CannotScore)
    parents = (errors.GraftError, errors.ImageError, errors.RequestError, *errors.BundleError.__subclasses__())
    assert {c for c in met if not issubclass(c, never) and c not in parents} == set(STATUS)


def test_the_docstring_draws_every_error() -> None:
    names = [name for name, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.GraftError)]
    assert [name for name in names if name not in (errors.__doc__ or "")] == []


def test_an_unknown_path_and_a_wrong_method(client: httpx.Client) -> None:
    assert_problem(client.get("/nowhere"), 404, "not-found", "/nowhere")
    answer = client.get("/v1/classify")
    assert_problem(answer, 405, "method-not-allowed", "/v1/classify does not accept GET")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("given", ["abc-123", "x" * 128])
def test_a_callers_request_id_is_kept(client: httpx.Client, given: str) -> None:
    body = assert_problem(client.get("/nowhere", headers={"x-request-id": given}), 404, "not-found")
    assert body["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "tab\there"])
def test_an_id_that_is_not_fit_for_a_log_is_replaced(client: httpx.Client, given: str) -> None:
    body = assert_problem(client.get("/nowhere", headers={"x-request-id": given}), 404, "not-found")
    assert len(body["request_id"]) == 32


def test_a_good_answer_has_an_id_too_and_each_its_own(client: httpx.Client) -> None:
    ids = {client.get("/healthz").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_an_unexpected_exception_is_a_500_that_tells_nothing_and_the_service_lives_on(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(models=models)
    app = create_app(settings)

    class Failing(Predictor):
        def begin(self, *_: object) -> PredictionTask:
            raise RuntimeError("secret of the inside")

    usual = app.state.predictor
    app.state.predictor = app.state.fast_path.predictor = Failing(usual.repository, usual.admission, usual.decoding, 9)
    with caplog.at_level(logging.ERROR), serving(settings, app) as client:
        answer = client.post("/v1/classify", files={"image": png(garment("bag"))})
        body = assert_problem(answer, 500, "internal-server-error")
        assert "secret" not in answer.text
        assert client.get("/healthz").status_code == 200
    assert any("RuntimeError" in r.getMessage() and r.exc_info for r in caplog.records if r.name == "graft"), body


def test_documented_statuses_carry_the_shape() -> None:
    content = documented(404)[404]["content"]["application/problem+json"]["schema"]
    assert content["required"] == ["type", "title", "status", "detail", "request_id"]
