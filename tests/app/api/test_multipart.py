"""The fast reader of plain forms against python-multipart's parser, and the forms that only the parser reads."""

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.multipart import files_of, parsed_files, plain_files
from app.errors import MalformedRequest, TooManyImages

FILES = st.lists(st.binary(max_size=60), min_size=1, max_size=5)
PLAIN = [{"files": [("image", b"one"), ("image", b"two")]}, {"files": {"a b": ("näme.png", b"", "image/png")}}]


def form(
    files: list[bytes], boundary: bytes = b"b", head: bytes = b'name="a"; filename="b"', end: bytes = b"\r\n"
) -> bytes:
    parts = [b"--" + boundary + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + f for f in files]
    return b"\r\n".join([*parts, b"--" + boundary + b"--" + end])


@given(FILES)
def test_files_are_read_unchanged(files: list[bytes]) -> None:
    if not any(b"\r\n--b" in file for file in files):
        assert plain_files(form(files), b"b", 5) == files


@given(st.binary(max_size=30).map(lambda junk: junk.replace(b"x", b"\r\n--b").replace(b"y", b"\r\n")), FILES)
@example(b"--", [b""])
def test_the_fast_reader_and_the_parser_read_the_same_files(junk: bytes, files: list[bytes]) -> None:
    whole = form(files)
    for at in (0, 3, len(whole) // 2, len(whole) - 4, len(whole)):
        body = whole[:at] + junk + whole[at:]
        quick = plain_files(body, b"b", 1000)
        assert quick is None or quick == parsed_files(body, b"b", 1000)


@pytest.mark.parametrize("sent", PLAIN)
def test_forms_of_common_clients_are_plain(sent: dict[str, object]) -> None:
    request = httpx.Request("POST", "http://x", **sent)  # type: ignore[arg-type]
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    found = plain_files(request.read(), boundary, 5)
    assert found is not None
    assert found == files_of(request.read(), request.headers["content-type"], 5)


@pytest.mark.parametrize(
    "body",
    [
        form([b"A"], end=b""),
        form([b"A"], end=b"\r\nepilogue"),
        form([b"A"], head=b"name=a; filename=b"),
        form([b"A"], head=b"name=\"a\"; filename*=UTF-8''b"),
        form([b"A"], head=b'name="a"\r\nContent-Type: image/png'),
        form([b"A"], head=b'name="a"; filename="b\\"c"'),
        form([b"A"], head=b'name="a"; filename="b"\r\nContent-Type: image/png\r\nX-More: 1'),
    ],
)
def test_unusual_forms_are_read_by_the_parser(body: bytes) -> None:
    assert files_of(body, "multipart/form-data; boundary=b", 5) == [b"A"]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 9, 20])
def test_a_truncated_form_is_refused(cut: int) -> None:
    body = form([b"A", b"B"], end=b"")
    with pytest.raises(MalformedRequest):
        files_of(body[:-cut], "multipart/form-data; boundary=b", 5)


def test_more_files_than_are_allowed_are_refused() -> None:
    assert len(files_of(form([b"A"] * 5), "multipart/form-data; boundary=b", 5)) == 5
    with pytest.raises(TooManyImages, match="more images than the 5"):
        files_of(form([b"A"] * 6), "multipart/form-data; boundary=b", 5)
