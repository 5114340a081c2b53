import json
import struct
from typing import Any

import numpy as np
import pytest

from app.api.v2.wire import InputTensor, RequestedOutput, infer_response, json_length, parse_infer_request
from app.errors import MalformedRequest, TooManyImages

IMAGE = {"name": "image", "shape": [2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]}
NO_DATA = {name: value for name, value in IMAGE.items() if name != "data"}


def question(document: Any, rest: bytes = b"", most: int = 100) -> Any:
    head = json.dumps(document).encode()
    return parse_infer_request(head + rest, len(head), most)


def sized(size: Any) -> dict[str, Any]:
    return NO_DATA | {"parameters": {"binary_data_size": size}}


@pytest.mark.parametrize(
    ("document", "rest", "message"),
    [
        ([], b"", "a JSON object"),
        ({}, b"", "inputs: a list of at least one tensor"),
        ({"inputs": []}, b"", "inputs: a list of at least one tensor"),
        ({"inputs": {}}, b"", "inputs: a list of at least one tensor"),
        ({"inputs": [7]}, b"", "inputs: an object with a name is expected"),
        ({"inputs": [{"shape": [1]}]}, b"", "inputs: an object with a name is expected"),
        ({"inputs": [IMAGE | {"name": 7}]}, b"", "inputs: an object with a name is expected"),
        ({"inputs": [IMAGE, IMAGE]}, b"", "inputs: a name occurs twice"),
        ({"inputs": [IMAGE | {"datatype": None}]}, b"", "image: datatype: a string"),
        ({"inputs": [IMAGE | {"shape": None}]}, b"", "image: shape: a list of whole numbers"),
        ({"inputs": [IMAGE | {"shape": 4}]}, b"", "image: shape: a list of whole numbers"),
        ({"inputs": [IMAGE | {"shape": [-1, 2]}]}, b"", "image: shape: a list of whole numbers"),
        ({"inputs": [IMAGE | {"shape": [2.0, 2]}]}, b"", "image: shape: a list of whole numbers"),
        ({"inputs": [IMAGE | {"shape": [True, 2]}]}, b"", "image: shape: a list of whole numbers"),
        ({"inputs": [IMAGE | {"shape": [2**63]}]}, b"", "image: shape: a list of whole numbers"),
        ({"inputs": [IMAGE | {"shape": [1] * 9}]}, b"", "image: shape: a list of whole numbers"),
        ({"inputs": [NO_DATA]}, b"", "image: send either data or parameters.binary_data_size"),
        ({"inputs": [IMAGE | sized(0)]}, b"", "image: send either data or parameters.binary_data_size"),
        ({"inputs": [IMAGE | {"data": 7}]}, b"", "image: data: a list"),
        ({"inputs": [IMAGE | {"parameters": []}]}, b"", "image: parameters: an object"),
        ({"inputs": [IMAGE | {"parameters": {"shared_memory_region": "r"}}]}, b"", "image: shared memory"),
        ({"inputs": [sized(5)]}, b"1234", "image: binary_data_size 5, but 4 bytes are left"),
        ({"inputs": [sized(-1)]}, b"1234", "image: binary_data_size -1"),
        ({"inputs": [sized("4")]}, b"1234", "image: binary_data_size '4'"),
        ({"inputs": [sized(2**70)]}, b"1234", "image: binary_data_size 1180"),
        ({"inputs": [sized(3)]}, b"1234", "1 bytes after the JSON"),
        ({"inputs": [IMAGE]}, b"1", "1 bytes after the JSON"),
        ({"inputs": [IMAGE], "id": 7}, b"", "id: a string"),
        ({"inputs": [IMAGE], "id": "\ud800"}, b"", "not JSON: unexpected end of hex escape"),
        ({"inputs": [IMAGE], "parameters": 7}, b"", "the request: parameters: an object"),
        ({"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}, b"", "binary_data_output 1 is neither"),
        ({"inputs": [IMAGE], "parameters": {"timeout": 0}}, b"", "timeout 0 is not a number of microseconds"),
        ({"inputs": [IMAGE], "parameters": {"timeout": float("nan")}}, b"", "timeout nan is not"),
        ({"inputs": [IMAGE], "outputs": {}}, b"", "outputs: a list"),
        ({"inputs": [IMAGE], "outputs": [{}]}, b"", "outputs: an object with a name is expected"),
        ({"inputs": [IMAGE], "outputs": [{"name": "a"}, {"name": "a"}]}, b"", "outputs: a name occurs twice"),
        ({"inputs": [IMAGE], "outputs": [{"name": "a", "parameters": {"binary_data": "yes"}}]}, b"", "a: binary_data"),
        (
            {"inputs": [IMAGE], "outputs": [{"name": "a", "parameters": {"classification": 0}}]},
            b"",
            "a: classification",
        ),
        (
            {"inputs": [IMAGE], "outputs": [{"name": "a", "parameters": {"shared_memory_region": "r"}}]},
            b"",
            "a: shared memory",
        ),
    ],
)
def test_what_is_wrong_is_named(document: Any, rest: bytes, message: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        question(document, rest)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": [1, 2, 3]}, "data is 3 numbers; shape says [2, 2]"),
        ({"data": [[1, 2, 3, 4]]}, "data is of shape [1, 4]; shape says [2, 2]"),
        ({"data": [[1, 2], [3]]}, "not a list of UINT8 numbers"),
        ({"data": [1, 2, 3, "4"]}, "not a list of UINT8 numbers"),
        ({"data": [1, 2, 3, None]}, "not a list of UINT8 numbers"),
        ({"data": [1, 2, 3, 4.5]}, "not a list of UINT8 numbers"),
        ({"data": [True, False, True, True]}, "not a list of UINT8 numbers"),
        ({"data": [1, 2, 3, 256]}, "outside 0…255"),
        ({"data": [1, 2, 3, -1]}, "outside 0…255"),
        ({"data": [1, 2, 3, 10**30]}, "outside 0…255"),
        ({"data": [1, 2, 3, 10**400]}, "not a list of UINT8 numbers"),
        ({"data": [True, 2, 3, 4]}, "not a list of UINT8 numbers"),
        (
            {"data": [[1, 2, 3, 4] * 1000, ["x" * 10_000_000] * 4000]},
            "not a list of UINT8 numbers",
        ),  # 160 GB as one array
        ({"data": [1, 2, 3, {}]}, "not a list of UINT8 numbers"),
        ({"data": [[1], *[1] * 50_000]}, "data is 50,001 rows; shape says [2, 2]"),
        ({"data": [[1]], "shape": ()}, "data is 1 rows; shape says []"),
        ({"data": []}, "data is 0 numbers"),
        ({"data": memoryview(b"123")}, "3 bytes of data; UINT8 of [2, 2] has 4"),
        ({"data": memoryview(b"1234"), "datatype": "FP32"}, "4 bytes of data; FP32 of [2, 2] has 16"),
        ({"data": memoryview(b""), "shape": (2**40, 2**40, 2**40)}, "0 bytes of data"),
    ],
)
def test_data_that_is_no_such_tensor_is_refused(given: dict[str, Any], message: str) -> None:
    fields = {"name": "image", "datatype": "UINT8", "shape": (2, 2), **given}
    with pytest.raises(MalformedRequest) as refused:
        InputTensor(**fields).array()
    assert message in str(refused.value)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], memoryview(b"\1\2\3\4")])
def test_flat_nested_and_binary_are_one_tensor(data: Any) -> None:
    found = InputTensor("image", "UINT8", (2, 2), data).array()
    np.testing.assert_array_equal(found, np.array([[1, 2], [3, 4]], np.uint8), strict=True)


def test_floats_are_little_endian_wherever_they_lie() -> None:
    body = memoryview(b"x" + struct.pack("<3f", 0.1, -2, 3e38))[1:]
    found = InputTensor("embedding", "FP32", (1, 3), body).array()
    np.testing.assert_array_equal(found, np.array([[0.1, -2, 3e38]], np.float32), strict=True)
    assert found.flags.aligned
    np.testing.assert_array_equal(InputTensor("embedding", "FP32", (1, 3), [0.1, -2, 3e38]).array(), found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (memoryview(b"\3\0\0\0ab"), "runs past the end"),
        (memoryview(b"\3\0"), "runs past the end"),
        (memoryview(b"\xff\xff\xff\xffab"), "runs past the end"),
        (memoryview(bytes(1 << 20)), "more elements of data; shape says [2]"),
        (memoryview(b"\1\0\0\0a"), "1 elements of data; shape says [2]"),
        (["YQ=="], "1 elements of data; shape says [2]"),
        (["YQ==", 7], "data[1] is not a string of base64"),
        (["YQ==", "ü"], "data[1] is not base64"),
        (["YQ==", "Y"], "data[1] is not base64"),
    ],
)
def test_elements_that_are_none_are_refused(data: Any, message: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        InputTensor("image", "BYTES", (2,), data).elements()
    assert message in str(refused.value)


def test_elements_come_prefixed_by_their_length_or_in_base64() -> None:
    assert InputTensor("image", "BYTES", (2,), memoryview(b"\1\0\0\0a\0\0\0\0")).elements() == [b"a", b""]
    assert InputTensor("image", "BYTES", (2,), ["YQ==", ""]).elements() == [b"a", b""]


def test_tensors_follow_the_json_in_the_order_of_their_mention() -> None:
    other = {"name": "other", "shape": [1], "datatype": "FP32", "data": [5]}
    document = {"inputs": [sized(4), other, sized(2) | {"name": "last"}], "id": "a"}
    found = question(document, b"123456")
    assert [bytes(given.data) if given.name != "other" else given.data for given in found.inputs] == [
        b"1234",
        [5],
        b"56",
    ]
    assert (found.id, found.outputs, found.binary, found.timeout_ms) == ("a", None, False, None)


def test_an_output_says_for_itself_whether_it_is_binary() -> None:
    requested = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False, "classification": 2}}]
    found = question(
        {"inputs": [IMAGE], "outputs": requested, "parameters": {"binary_data_output": True, "timeout": 1500}}
    )
    assert found.outputs == [RequestedOutput("a", True), RequestedOutput("b", False, 2)]
    assert found.timeout_ms == 1
    assert question({"inputs": [IMAGE], "outputs": []}).outputs is None


@pytest.mark.parametrize("value", ["-1", "1.5", "", "six", "+1", " 1", "²", "9" * 5000])
def test_a_header_that_is_no_length_is_refused(value: str) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length"):
        json_length(value, b"12345")


def test_the_header_says_where_the_json_ends() -> None:
    assert json_length("3", b"12345") == 3
    assert json_length(None, b"12345") == 5
    with pytest.raises(MalformedRequest, match="says 6, and the body has 5 bytes"):
        json_length("6", b"12345")


def test_a_fully_nested_tensor_of_the_largest_size_is_not_taken_for_an_attack() -> None:
    column = np.zeros((1000, 1, 1, 1), np.uint8)
    given = IMAGE | {"shape": list(column.shape), "data": column.tolist()}
    assert question({"inputs": [given]}, most=1000).inputs[0].array().shape == column.shape
    with pytest.raises(TooManyImages):
        question({"inputs": [given]}, most=500)


@pytest.mark.parametrize("nested", [True, False])
def test_a_tensor_longer_than_what_is_built_at_once_is_whole(nested: bool) -> None:
    values = np.arange(200_000, dtype=np.uint32).astype(np.uint8).reshape(4, 50_000)
    data = values.tolist() if nested else values.ravel().tolist()
    np.testing.assert_array_equal(InputTensor("image", "UINT8", values.shape, data).array(), values, strict=True)


def test_an_answer_is_json_alone_unless_an_output_is_binary() -> None:
    values = np.array([[0.1, 1.0]], np.float32)
    texts = [["0.5:1:ö"]]
    plain = infer_response({"id": "a"}, [(RequestedOutput("x", False), values), (RequestedOutput("y", False), texts)])
    assert plain.media_type == "application/json"
    assert json.loads(plain.body) == {
        "id": "a",
        "outputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": values[0].tolist()},
            {"name": "y", "datatype": "BYTES", "shape": [1, 1], "data": ["0.5:1:ö"]},
        ],
    }
    mixed = infer_response(
        {},
        [
            (RequestedOutput("x", True), values),
            (RequestedOutput("y", True), texts),
            (RequestedOutput("z", False), values),
        ],
    )
    at = int(mixed.headers["inference-header-content-length"])
    output = json.loads(mixed.body[:at])["outputs"]
    assert [each.get("parameters") for each in output] == [{"binary_data_size": 8}, {"binary_data_size": 12}, None]
    assert mixed.body[at:] == values.tobytes() + b"\x08\0\0\0" + "0.5:1:ö".encode()
