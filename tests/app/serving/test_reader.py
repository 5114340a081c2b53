"""Where requests end, however their bytes are cut; and what is no HTTP."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serving.reader import MAX_HEAD, Head, Malformed, Reader, TooLarge

GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nContent-Length: 11\r\nX: y\r\n\r\nhello\r\n\r\nyo"
CHUNKS = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKS + b"3;a=b\r\na\r\n\r\n9\r\n\r\n0\r\n\r\n\n!\r\n0\r\nAfter: it\r\n\r\n"
UPGRADE = b"POST /d HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi"
EMPTY = b"POST /e HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
WHOLE = (GET, POST, CHUNKED, UPGRADE, EMPTY)


def read(reader: Reader, data: bytes, size: int = 1 << 20) -> list[Head | bytes]:
    """Heads, and the pieces of their bodies, of data that comes in segments."""
    output: list[Head | bytes] = []
    for at in range(0, len(data), size):
        reader.add(data[at : at + size])
        while piece := reader.read_head() if reader.complete else reader.read_body():
            output.append(piece)
    return output


@given(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=4), st.data())
def test_requests_end_where_they_do_however_they_are_cut(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"\r\n".join([b"", *sent])  # blank lines may precede a head
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
    reader, output = Reader(), list[list[bytes]]()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        for piece in read(reader, stream[start:end]):
            if isinstance(piece, Head):
                output.append([piece.raw])
            else:
                output[-1].append(piece)
    assert reader.complete
    assert not reader.in_head
    assert [b"".join(pieces) for pieces in output] == [each.replace(b"\r\nUpgrade: h2c", b"") for each in sent]


def test_a_head_says_what_was_asked() -> None:
    [head, body] = read(Reader(), POST)
    assert isinstance(head, Head)
    assert (head.method, head.target, head.version, head.keep_alive) == (b"POST", b"/b", "1.1", True)
    assert head.headers == [(b"content-length", b"11"), (b"x", b"y")]
    assert body == POST[-11:]
    [last] = read(Reader(), b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert isinstance(last, Head)
    assert not last.keep_alive


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        # Bodies whose end two parsers may see in different places
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        CHUNKS + b"0x3\r\nabc\r\n0\r\n\r\n",
        CHUNKS + b"-3\r\nabc\r\n0\r\n\r\n",
        CHUNKS + b"3\nabc\n0\n\n",
        CHUNKS + b"3\r\nabcd\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20], ids=["byte by byte", "at once"])
def test_what_is_no_http_is_refused(data: bytes, size: int) -> None:
    with pytest.raises(Malformed):
        read(Reader(), data, size)


def test_a_target_that_uvicorn_cannot_read_is_refused() -> None:
    [head] = read(Reader(), b"GET http://graft HTTP/1.1\r\n\r\n")
    assert isinstance(head, Head)
    with pytest.raises(Malformed):
        head.require_valid_target()


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_head_has_a_limit(size: int) -> None:
    def filled(length: int) -> bytes:
        return b"GET / HTTP/1.1\r\nA: " + b"x" * (length - 23) + b"\r\n\r\n"

    [head] = read(Reader(), filled(MAX_HEAD), size)
    assert isinstance(head, Head)
    assert len(head.raw) == MAX_HEAD
    with pytest.raises(TooLarge):
        read(Reader(), filled(MAX_HEAD + 1), size)


def test_a_chunk_of_line_ends_is_given_to_the_parser_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fed, feed = list[int](), Reader._feed
    monkeypatch.setattr(Reader, "_feed", lambda reader, data: (fed.append(len(data)), feed(reader, data))[1])
    reader = Reader()
    read(reader, CHUNKS + b"8000\r\n" + b"\n" * 0x8000 + b"\r\n0\r\n\r\n")
    assert reader.complete
    assert len(fed) < 10


@pytest.mark.parametrize(
    "endless", [b"0\r\nX: " + b"x" * MAX_HEAD, b"1;" + b"x" * MAX_HEAD, b"0\r\n" + b"a: b\r\n" * 20_000]
)
def test_what_surrounds_chunks_has_a_limit(endless: bytes) -> None:
    reader = Reader()
    with pytest.raises(TooLarge):
        read(reader, CHUNKS + b"1\r\nx\r\n" + endless)
    small = Reader()
    read(small, CHUNKS + b"1\r\nx\r\n" * MAX_HEAD + b"0\r\n\r\n")
    assert small.complete
