import pytest

from app.api.negotiation import JSON, NPY, PNG, choose
from app.errors import NotAcceptable


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (NPY, NPY),
        ("APPLICATION/X-NPY", NPY),
        ("image/*", PNG),
        ("text/html, application/json;q=0.5, */*;q=0.1", JSON),
        ("application/json;q=0.5, application/x-npy", NPY),
        ("application/json;q=0.9, application/x-npy;q=0.9", JSON),
        ("*/*;q=0.2, image/png", PNG),
        ("application/json;q=0, */*", NPY),
    ],
)
def test_the_preferred_type_is_chosen(accept: str | None, form: str) -> None:
    assert choose(accept, (JSON, NPY, PNG)) == form


@pytest.mark.parametrize(
    "accept",
    ["text/html", "application/json;q=0", "image/png", "nonsense", "*/*;q=x", "*/*;q=nan", "*/*;q=inf", "*/*;q=-1"],
)
def test_an_unsupported_type_is_refused_with_a_list_of_the_supported(accept: str) -> None:
    with pytest.raises(NotAcceptable, match=r"application/json, application/x-npy"):
        choose(accept, (JSON, NPY))
