"""Every answer of the fast path equals that of the ordinary path, headers included; over real sockets."""

import base64
import io
import json
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import save_tiny, serving, tiled_spec

from app.bundle.drawings import GARMENTS, garment
from app.settings import Settings

MAX_BYTES = 64 << 10  # of bodies on the fast path
ORDINARY = {"Content-Encoding": "identity"}  # changes nothing, but is not for the fast path
MODELS = ["tiny", "patches", "tiled", "labels"]
MASKED = re.compile(rb"(?<=\n)(date|x-request-id|server-timing): [^\r]*|dur=[\d.]+|\"request_id\":\"[0-9a-f]{32}\"")


class Asked(NamedTuple):
    target: str
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"{self.target} {self.headers} {self.body[:300]!r}, {len(self.body)} bytes"


def encoded(kind: str, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def files() -> st.SearchStrategy[bytes]:
    def draw(name: str, size: tuple[int, int], mode: str, kind: str) -> bytes:
        return encoded(kind, garment(name).resize(size).convert("L" if kind == "JPEG" and mode == "RGBA" else mode))

    sizes = st.sampled_from([(4, 6), (4, 6), (28, 28), (64, 64), (90, 70), (200, 160)])
    kinds = st.sampled_from(["PNG", "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
    good = st.builds(draw, st.sampled_from(list(GARMENTS)), sizes, st.sampled_from(["L", "RGB", "RGBA"]), kinds)
    broken = st.sampled_from([b"", b"GIF89a", b"no image", encoded("PNG", garment("bag"))[:60]])
    return st.one_of(good, good, good, good, good, good, broken)


def of_form(images: Sequence[bytes]) -> tuple[dict[str, str], bytes]:
    head = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\nContent-Type: image/png\r\n\r\n'
    return {"Content-Type": "multipart/form-data; boundary=b"}, b"".join(
        [*(head + each + b"\r\n" for each in images), b"--b--\r\n"]
    )


def of_odd_form(images: Sequence[bytes]) -> tuple[dict[str, str], bytes]:
    """With a field that is no file, which takes the parser."""
    headers, body = of_form(images)
    return headers, b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nhello\r\n' + body


def of_json(images: Sequence[bytes]) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/json"}, json.dumps(
        {"images": [base64.b64encode(each).decode() for each in images]}
    ).encode()


def raw(images: Sequence[bytes]) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "image/png"}, images[0]


BODIES: list[Callable[[Sequence[bytes]], tuple[dict[str, str], bytes]]] = [of_form, of_odd_form, of_json, raw]
PARAMETERS = {
    "model": [*MODELS, "tiny@1", "none", "tiny@9", ""],
    "top_k": ["1", "2", "99", "0", "x", ""],
    "in_domain": ["true", "false", "1", "on", "maybe"],
    "explain": ["true", "0"],
    "heatmap": ["true", "0", "yes"],
    "regions": ["true", "false"],
    "false_alarm_rate": ["0.05", "0.5", ".25", "1e-1", "1", "nan", "0.0001"],
    "unknown": ["a b&c", ""],
}
HEADERS = {
    "Accept": ["*/*", "application/json", "application/x-npy", "image/png", "text/html", "image/*;q=0.5, */*;q=0.1"],
    "Origin": ["https://shop.example", "https://elsewhere.example"],
    "X-Timeout-Ms": ["20000", "99999999", "0", "soon"],
    "X-Request-ID": ["mine", "not fit for a log"],
    "traceparent": [f"00-{'a' * 32}-{'b' * 16}-01"],
    "X-API-Key": ["secret", "secret", "secret", "wrong"],
    "Cookie": ["a=b"],
    "Connection": ["close"],
}


def some_of(choices: dict[str, list[str]]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in choices.items()})


@st.composite
def operations(draw: st.DrawFn) -> Asked:
    operation = draw(st.sampled_from(["classify", "encode", "reconstruct", "anomaly", "predict"]))
    query = urlencode(draw(some_of(PARAMETERS)))
    headers, body = draw(st.sampled_from(BODIES))(draw(st.lists(files(), min_size=1, max_size=4)))
    return Asked(f"/v1/{operation}" + (f"?{query}" if query else ""), headers | draw(some_of(HEADERS)), body)


OUTPUTS = ["embedding", "reconstruction", "logits", "probabilities", "anomaly_score", "p_value", "anomaly_map", "none"]


@st.composite
def inferences(draw: st.DrawFn) -> Asked:
    rows, in_binary = draw(st.integers(1, 3)), draw(st.booleans())
    tensor: dict[str, object] = {"name": "image", "datatype": "UINT8", "shape": [rows, 6, 4, 1]}
    data = draw(st.binary(min_size=24 * rows, max_size=24 * rows))
    if draw(st.booleans()):
        images = draw(st.lists(files(), min_size=rows, max_size=rows))
        tensor |= {"datatype": "BYTES", "shape": [rows]}
        data = b"".join(len(each).to_bytes(4, "little") + each for each in images)
        tensor |= {} if in_binary else {"data": [base64.b64encode(each).decode() for each in images]}
    elif not in_binary:
        tensor |= {"data": list(data)}
    if in_binary:
        tensor |= {"parameters": {"binary_data_size": len(data)}}
    outputs = draw(st.lists(st.sampled_from(OUTPUTS), unique=True, max_size=3))
    parameters = draw(
        st.fixed_dictionaries(
            {}, optional={"binary_data_output": st.booleans(), "timeout": st.sampled_from([9_000_000, -1])}
        )
    )
    question = {"inputs": [tensor], "parameters": parameters} | draw(some_of({"id": ["mine"]}))
    question |= {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    head = json.dumps(question).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if in_binary else {}
    model = draw(st.sampled_from([*MODELS, "tiny/versions/1", "none"]))
    return Asked(f"/v2/models/{model}/infer", headers | draw(some_of(HEADERS)), head + data if in_binary else head)


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    with serving(Settings(models=folder, default_model="tiny", cors_origins="https://shop.example")) as client:
        yield client


@pytest.fixture(scope="module")
def keyed_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    with serving(Settings(models=folder, default_model="tiny", cors_origins="*", api_keys="secret,other")) as client:
        yield client


def save_models(folder: Path) -> None:
    save_tiny(folder)
    save_tiny(folder, "patches", patches=True)
    save_tiny(folder, "tiled", shape=tiled_spec())
    save_tiny(folder, "labels", thresholds=(0.3, 0.5, 0.7))


def answer_to(client: httpx.Client, asked: Asked) -> bytes:
    target, headers, body = asked
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "x", **headers}.items())
    head = f"POST {target} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        found = b""
        while not (length := re.search(rb"\r\ncontent-length: (\d+)\r\n(?:.*?\r\n)??\r\n", found, re.DOTALL)):
            found += connection.recv(1 << 20) or pytest.fail("the connection ended within a head")
        while len(found) < length.end() + int(length[1]):
            found += connection.recv(1 << 20) or pytest.fail("the connection ended within an answer")
        return found


def handed_over(client: httpx.Client) -> float:
    lines = client.get("/metrics", headers={"X-API-Key": "secret"}).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("graft_fast_path_handovers_total{"))


def compare(client: httpx.Client, asked: Asked) -> None:
    _, headers, body = asked
    before = handed_over(client)
    fast = answer_to(client, asked)
    was_fast = handed_over(client) == before
    ordinary = answer_to(client, asked._replace(headers=headers | ORDINARY))
    kept = b"x-request-id: mine\r\n" in ordinary
    assert (b"x-request-id: mine\r\n" in fast) == kept
    assert MASKED.sub(b"", fast) == MASKED.sub(b"", ordinary)
    assert re.findall(rb"\r\n([\w-]+): ", fast.partition(b"\r\n\r\n")[0]) == re.findall(
        rb"\r\n([\w-]+): ", ordinary.partition(b"\r\n\r\n")[0]
    )
    is_good = fast.startswith(b"HTTP/1.1 200 ") and len(body) <= MAX_BYTES
    assert was_fast == is_good, "good requests are fast, and only they"


MANY = settings(max_examples=200, deadline=None)


@MANY
@given(asked=operations())
def test_operations_are_answered_as_on_the_ordinary_path(open_service: httpx.Client, asked: Asked) -> None:
    compare(open_service, asked)


@MANY
@given(asked=inferences())
def test_inferences_are_answered_as_on_the_ordinary_path(open_service: httpx.Client, asked: Asked) -> None:
    compare(open_service, asked)


@settings(max_examples=60, deadline=None)
@given(asked=st.one_of(operations(), inferences()))
def test_with_keys_and_for_all_origins_answers_are_the_same(keyed_service: httpx.Client, asked: Asked) -> None:
    compare(keyed_service, asked)
