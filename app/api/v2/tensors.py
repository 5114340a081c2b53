"""The input and output tensors of a model under /v2, and what has to be run for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.api.v2.wire import BYTES, DATATYPES, InferRequest, InputTensor, RequestedOutput
from app.bundle import scoring
from app.bundle.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP
from app.errors import MalformedRequest, TooManyImages
from app.inference import results
from app.inference.answer import DISTANCES, LOGITS, PROBABILITIES, RECONSTRUCTION, Outputs

IMAGE, SCORE, P_VALUE = "image", "anomaly_score", "p_value"
IMAGE_TYPE, ENCODED_TYPE = "UINT8", "FP32"


@dataclass(frozen=True, slots=True)
class Output:
    """`compute` makes it from the result named `needs`; `shape` is without the batch."""

    datatype: str
    shape: tuple[int, ...]
    needs: str
    compute: Callable[[Bundle, Outputs], np.ndarray]


def outputs_of(bundle: Bundle) -> dict[str, Output]:
    """By name, in the order of a response to a request that names no outputs."""
    graphs = bundle.manifest.graphs
    tensors = [(tensor.name, tensor) for tensor in graphs.encoded]
    tensors += [(RECONSTRUCTION, graphs.decoder.outputs[0])] if graphs.decoder else []
    tensors += [(LOGITS, graphs.head.outputs[0])] if graphs.head else []
    outputs = {
        name: Output(DATATYPES[np.dtype(tensor.dtype)], tensor.shape[1:], name, _unchanged(name))
        for name, tensor in tensors
    }
    if graphs.head:
        outputs[PROBABILITIES] = Output("FP64", outputs[LOGITS].shape, LOGITS, results.probabilities)
    if bundle.scorer:
        outputs[SCORE] = Output("FP64", (), DISTANCES, results.combined_scores)
        outputs[P_VALUE] = Output("FP64", (), DISTANCES, results.p_values)
    if graphs.patches:
        map_ = graphs.patches.outputs[0]
        datatype = DATATYPES[np.dtype(map_.dtype)]
        outputs[ANOMALY_MAP] = (
            Output(datatype, (-1, -1), ANOMALY_MAP, lambda _, computed: np.stack(list(computed[ANOMALY_MAP])))
            if bundle.tiled
            else Output(datatype, map_.shape[1:], ANOMALY_MAP, _unchanged(ANOMALY_MAP))
        )
    return outputs


def _unchanged(name: str) -> Callable[[Bundle, Outputs], np.ndarray]:
    return lambda _, outputs: outputs[name]


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request matched to a model: its rows, as files, pixels or encoder outputs, and the outputs to compute."""

    request: InferRequest
    images: list[bytes] | np.ndarray | None
    encoded: Outputs
    outputs: list[tuple[RequestedOutput, Output]]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(output.needs for _, output in self.outputs)


def raw_infer_request(body: bytes, bundle: Bundle) -> InferRequest:
    """The request of a body that is one image's pixels, without JSON."""
    image = InputTensor(IMAGE, IMAGE_TYPE, (1, *bundle.manifest.input.shape), memoryview(body))
    return InferRequest(None, [image], None, binary=True, timeout_ms=None)


def most_values(bundle: Bundle, most: int) -> int:
    """The number of values in the largest inputs of a request with `most` rows."""
    encoded = sum(tensor.shape[1] for tensor in bundle.manifest.graphs.encoded)
    return most * max(int(np.prod(bundle.manifest.input.shape)), encoded)


def resolve(request: InferRequest, bundle: Bundle, most: int) -> ResolvedRequest:
    """Match the request to the model; it may have 1 to `most` rows."""
    names = [tensor.name for tensor in request.inputs]
    encoded: Outputs = {}
    images: list[bytes] | np.ndarray | None = None
    if names == [IMAGE]:
        images = _images(request.inputs[0], bundle, most)
    else:
        encoded = _encoded(request.inputs, bundle, most)
    available = {
        name: output
        for name, output in outputs_of(bundle).items()
        if images is not None or _is_reachable(output, bundle, names)
    }
    if bundle.tiled and images is not None and len(images) > 1:
        _leave_out_maps(request, available)
    model, inputs = f"{bundle.name}@{bundle.version}", ", ".join(names)
    if not available:
        raise MalformedRequest(f"inputs: {model} has no output that follows from {inputs}")
    requested = request.outputs or [RequestedOutput(name, request.binary) for name in available]
    for each in requested:
        if each.name not in available:
            choices = ", ".join(available)
            raise MalformedRequest(f"outputs: {model} has no {each.name[:100]!r} for {inputs}; it has: {choices}")
        if each.classes is not None and available[each.name].needs != LOGITS:
            raise MalformedRequest(f"{each.name}: classification is supported for {LOGITS} and {PROBABILITIES} only")
    return ResolvedRequest(request, images, encoded, [(each, available[each.name]) for each in requested])


def _leave_out_maps(request: InferRequest, available: dict[str, Output]) -> None:
    """Maps of several pictures in tiles have no common shape, as a tensor must have."""
    available.pop(ANOMALY_MAP, None)
    if any(each.name == ANOMALY_MAP for each in request.outputs or ()):
        raise MalformedRequest(
            f"outputs: {ANOMALY_MAP}: this model cuts pictures into tiles, and maps of several pictures have no common "
            "shape: send one picture in a request, or leave it out of outputs"
        )


def _is_reachable(output: Output, bundle: Bundle, inputs: Sequence[str]) -> bool:
    """Whether one graph computes the output from one of these inputs, which are outputs of the encoder."""
    graph = {RECONSTRUCTION: bundle.manifest.graphs.decoder, LOGITS: bundle.manifest.graphs.head}.get(output.needs)
    return graph is not None and graph.input.name in inputs


def _images(tensor: InputTensor, bundle: Bundle, most: int) -> list[bytes] | np.ndarray:
    shape = bundle.manifest.input.shape
    if tensor.datatype == BYTES:
        _require_shape(tensor, (), most)
        files = tensor.elements()
        empty = next((index for index, file in enumerate(files) if not file), None)
        if empty is not None:
            raise MalformedRequest("the image is empty: zero bytes", empty if len(files) > 1 else None)
        return files
    if bundle.tiled:
        raise MalformedRequest(
            f"{IMAGE}: {bundle.name}@{bundle.version} cuts pictures of any size into tiles, and pixels have one size: "
            f"send {BYTES} with whole files"
        )
    _require_type(tensor, IMAGE_TYPE, f"{IMAGE_TYPE}, or {BYTES} with whole files,")
    _require_shape(tensor, shape, most)
    return tensor.array()


def _encoded(inputs: Sequence[InputTensor], bundle: Bundle, most: int) -> Outputs:
    known = {tensor.name: tensor for tensor in bundle.manifest.graphs.encoded}
    for tensor in inputs:
        if tensor.name not in known:
            choices = " and ".join(known)
            raise MalformedRequest(f"inputs: {tensor.name[:100]!r}: {IMAGE} is expected, or in its place {choices}")
        _require_type(tensor, ENCODED_TYPE, ENCODED_TYPE)
        _require_shape(tensor, known[tensor.name].shape[1:], most)
    if len({tensor.shape[0] for tensor in inputs}) > 1:
        raise MalformedRequest("inputs: they differ in their number of rows")
    encoded = {tensor.name: tensor.array() for tensor in inputs}
    for name, values in encoded.items():
        if not np.isfinite(values).all():
            raise MalformedRequest(f"{name}: data has values that are not finite as {ENCODED_TYPE}")
    return encoded


def _require_type(tensor: InputTensor, datatype: str, expected: str) -> None:
    if tensor.datatype != datatype:
        raise MalformedRequest(f"{tensor.name}: datatype {tensor.datatype[:20]!r}; {expected} is expected")


def _require_shape(tensor: InputTensor, row: tuple[int, ...], most: int) -> None:
    if tensor.shape[1:] != row or len(tensor.shape) < 1 or tensor.shape[0] < 1:
        expected = ", ".join(("n", *map(str, row)))
        raise MalformedRequest(f"{tensor.name}: shape {list(tensor.shape)}; [{expected}] is expected, n at least 1")
    if tensor.shape[0] > most:
        raise TooManyImages(f"{tensor.shape[0]:,} rows; at most {most:,} are allowed in one request")


def top_classes(values: np.ndarray, labels: Sequence[str], count: int) -> list[list[str]]:
    """(N, K) → the `count` likeliest classes of each row, as value:index:label"""
    orders = scoring.likeliest_first(values)[:, :count]
    return [[f"{row[i]}:{i}:{labels[i]}" for i in order] for row, order in zip(values, orders, strict=True)]
