"""Which tensors a model takes and gives under /v2, and what has to be run for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.api.v2.wire import BYTES, DATATYPES, Asked, Given, Question
from app.bundle import scoring
from app.bundle.bundle import Bundle
from app.errors import MalformedRequest, TooManyImages
from app.inference import results
from app.inference.answer import DISTANCES, LOGITS, PROBABILITIES, RECONSTRUCTION, Outputs

IMAGE, SCORE, P_VALUE = "image", "anomaly_score", "p_value"
IMAGE_TYPE, CODE_TYPE = "UINT8", "FP32"


@dataclass(frozen=True, slots=True)
class Output:
    """`of` makes it from what was run, of which it needs `wish`; `shape` is without the batch."""

    datatype: str
    shape: tuple[int, ...]
    wish: str
    of: Callable[[Bundle, Outputs], np.ndarray]


def outputs_of(bundle: Bundle) -> dict[str, Output]:
    """By name, in the order in which they come where a request names none."""
    graphs = bundle.manifest.graphs
    parts = [(tensor.name, tensor) for tensor in graphs.encoder.outputs]
    parts += [(RECONSTRUCTION, graphs.decoder.outputs[0])] if graphs.decoder else []
    parts += [(LOGITS, graphs.head.outputs[0])] if graphs.head else []
    found = {
        name: Output(DATATYPES[np.dtype(tensor.dtype)], tensor.shape[1:], name, _as_it_is(name))
        for name, tensor in parts
    }
    if graphs.head:
        found[PROBABILITIES] = Output("FP64", found[LOGITS].shape, LOGITS, results.probabilities)
    if bundle.scorer:
        found[SCORE] = Output("FP64", (), DISTANCES, results.combined_scores)
        found[P_VALUE] = Output("FP64", (), DISTANCES, results.p_values)
    return found


def _as_it_is(name: str) -> Callable[[Bundle, Outputs], np.ndarray]:
    return lambda _, outputs: outputs[name]


@dataclass(frozen=True, slots=True)
class Work:
    """What a question comes to: its rows, given as files, as pixels or as what an encoder gave, and what is wanted."""

    question: Question
    images: list[bytes] | np.ndarray | None
    encoded: Outputs
    outputs: list[tuple[Asked, Output]]

    @property
    def wishes(self) -> frozenset[str]:
        return frozenset(output.wish for _, output in self.outputs)


def raw_question(body: bytes, bundle: Bundle) -> Question:
    """Of a body that is one image's pixels and nothing else."""
    image = Given(IMAGE, IMAGE_TYPE, (1, *bundle.manifest.input.shape), memoryview(body))
    return Question(None, [image], None, binary=True, patience_ms=None)


def most_values(bundle: Bundle, most: int) -> int:
    """In the largest tensors that a request of `most` rows may have."""
    codes = sum(tensor.shape[1] for tensor in bundle.manifest.graphs.encoder.outputs)
    return most * max(int(np.prod(bundle.manifest.input.shape)), codes)


def work_of(question: Question, bundle: Bundle, most: int) -> Work:
    """At least one row, and at most `most`."""
    names = [given.name for given in question.inputs]
    encoded: Outputs = {}
    images: list[bytes] | np.ndarray | None = None
    if names == [IMAGE]:
        images = _images(question.inputs[0], bundle, most)
    else:
        encoded = _encoded(question.inputs, bundle, most)
    able = {name: out for name, out in outputs_of(bundle).items() if images is not None or _follows(out, bundle, names)}
    model, given = f"{bundle.name}@{bundle.version}", ", ".join(names)
    if not able:
        raise MalformedRequest(f"inputs: {model} gives nothing of {given}")
    asked = question.outputs or [Asked(name, question.binary) for name in able]
    for each in asked:
        if each.name not in able:
            told = ", ".join(able)
            raise MalformedRequest(f"outputs: {model} gives no {each.name[:100]!r} of {given}; it gives: {told}")
        if each.classes is not None and able[each.name].wish != LOGITS:
            raise MalformedRequest(f"{each.name}: classification is of {LOGITS} or {PROBABILITIES}")
    return Work(question, images, encoded, [(each, able[each.name]) for each in asked])


def _follows(output: Output, bundle: Bundle, given: Sequence[str]) -> bool:
    """Whether it is reached from the encoder's outputs that are given."""
    graph = {RECONSTRUCTION: bundle.manifest.graphs.decoder, LOGITS: bundle.manifest.graphs.head}.get(output.wish)
    return graph is not None and graph.input.name in given


def _images(given: Given, bundle: Bundle, most: int) -> list[bytes] | np.ndarray:
    shape = bundle.manifest.input.shape
    if given.datatype == BYTES:
        _require_shape(given, (), most)
        files = given.elements()
        empty = next((index for index, file in enumerate(files) if not file), None)
        if empty is not None:
            raise MalformedRequest("the image is empty: zero bytes", empty if len(files) > 1 else None)
        return files
    _require_type(given, IMAGE_TYPE, f"{IMAGE_TYPE}, or {BYTES} that are whole files,")
    _require_shape(given, shape, most)
    return given.array()


def _encoded(inputs: Sequence[Given], bundle: Bundle, most: int) -> Outputs:
    known = {tensor.name: tensor for tensor in bundle.manifest.graphs.encoder.outputs}
    for given in inputs:
        if given.name not in known:
            told = " and ".join(known)
            raise MalformedRequest(f"inputs: {given.name[:100]!r}: {IMAGE} is expected, or in its place {told}")
        _require_type(given, CODE_TYPE, CODE_TYPE)
        _require_shape(given, known[given.name].shape[1:], most)
    if len({given.shape[0] for given in inputs}) > 1:
        raise MalformedRequest("inputs: they differ in their number of rows")
    found = {given.name: given.array() for given in inputs}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise MalformedRequest(f"{name}: not all of data are finite numbers of {CODE_TYPE}")
    return found


def _require_type(given: Given, datatype: str, told: str) -> None:
    if given.datatype != datatype:
        raise MalformedRequest(f"{given.name}: datatype {given.datatype[:20]!r}; {told} is expected")


def _require_shape(given: Given, row: tuple[int, ...], most: int) -> None:
    if given.shape[1:] != row or len(given.shape) < 1 or given.shape[0] < 1:
        expected = ", ".join(("n", *map(str, row)))
        raise MalformedRequest(f"{given.name}: shape {list(given.shape)}; [{expected}] is expected, n at least 1")
    if given.shape[0] > most:
        raise TooManyImages(f"{given.shape[0]:,} rows; at most {most:,} are allowed in one request")


def best(values: np.ndarray, labels: Sequence[str], count: int) -> list[list[str]]:
    """(N, K) → the best of each row as value:index:label."""
    orders = scoring.likeliest_first(values)[:, :count]
    return [[f"{row[i]}:{i}:{labels[i]}" for i in order] for row, order in zip(values, orders, strict=True)]
