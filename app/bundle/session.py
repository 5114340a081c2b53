"""onnxruntime sessions. The only importer of onnxruntime, and the only reader of the ONNX wire format."""

import contextlib
import functools
import hashlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, which otherwise warns about a telemetry id

import numpy as np
import onnxruntime

from app.bundle.container_limits import cpu_quota
from app.bundle.manifest import Graph, Tensor
from app.errors import ExternalData, GraphMismatch, ProviderMissing

_ORT_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
CPU = ("CPUExecutionProvider",)
GPU = "CUDAExecutionProvider"  # part of onnxruntime-gpu
OPENVINO = "OpenVINOExecutionProvider"  # part of onnxruntime-openvino
CompiledIn = Callable[[], Sequence[str]]
_one_prints = threading.Lock()
Started = Callable[[Sequence[str]], Sequence[str]]
# TF32 keeps 10 bits of a float32's mantissa, too few to reproduce the golden pairs.
_OPTIONS = {GPU: {"use_tf32": "0"}}


class Execution(NamedTuple):
    """How onnxruntime runs a graph."""

    providers: tuple[str, ...]
    threads: int
    level: str = "all"  # of the optimisation of graphs, as in LEVELS

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.providers[0]}, {threads}, level {self.level}"


LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class Session:
    """One graph: (N, …) array in, one (N, …) array out per output, in the manifest's order."""

    def __init__(
        self,
        model: bytes,
        graph: Graph,
        where: str,
        threads: int,
        providers: Sequence[str] = CPU,
        level: str = "all",
    ) -> None:
        """`where` (name/version/file) begins every message; at level "none" the graph's nodes run as they are."""
        for weight, location in external_data(model, where):
            raise ExternalData(
                f"{where}: weight {weight!r} lies outside the graph, in {location!r}: "
                "a bundle's graphs must contain their weights; export with external_data=False"
            )
        try:
            self._session = _open(model, Execution(tuple(providers), threads, level))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise GraphMismatch(f"{where}: onnxruntime cannot load the graph: {error}") from error
        if self.provider not in providers:
            raise ProviderMissing(
                f"{where}: onnxruntime fell back from {', '.join(providers)} to {self.provider}; its log says why"
            )
        actual = [_tensor(t) for t in self._session.get_inputs()], [_tensor(t) for t in self._session.get_outputs()]
        expected = [_signature(graph.input)], [_signature(t) for t in graph.outputs]
        if actual != expected:
            raise GraphMismatch(f"{where}: the graph's inputs and outputs are {actual}, the manifest says {expected}")
        self.digest = hashlib.sha256(model).digest()
        self.execution = Execution(tuple(providers), threads, level)
        self._input = graph.input.name
        self._outputs = [t.name for t in graph.outputs]

    @property
    def provider(self) -> str:
        """The execution provider that runs the graph; onnxruntime may have fallen back to it without an error."""
        return str(self._session.get_providers()[0])

    def run_as(self, other: "Session") -> None:
        """Run the graph as `other`, of the same graph, does. Runs under way end as they began."""
        self._session, self.execution = other._session, other.execution

    def run(self, batch: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """All outputs, or those that are named: one that nobody asks for is not copied."""
        names = self._outputs if outputs is None else outputs
        return dict(zip(names, self._session.run(names, {self._input: batch}), strict=True))


def _open(model: bytes, execution: Execution) -> onnxruntime.InferenceSession:
    providers = execution.providers
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = execution.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # it keeps a plan per batch size: hundreds of MB for large images, no faster
    options.graph_optimization_level = LEVELS[execution.level]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn CPU
    own = {OPENVINO: {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(execution.threads)}}
    requested = [(name, _OPTIONS.get(name) or own.get(name, {})) for name in providers]
    if providers == CPU:
        return onnxruntime.InferenceSession(model, options, providers=requested)
    with _printing_to_stderr():
        return onnxruntime.InferenceSession(model, options, providers=requested, enable_fallback=CPU[0] in providers)


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """onnxruntime prints to stdout what it falls back from. Two threads that redirect it at once would leave it so."""
    with _one_prints, contextlib.redirect_stdout(sys.stderr):
        yield


# --- providers -------------------------------------------------------------------------------------------------
# The smallest ONNX graph that a provider can start with: one node, y = Identity(x).
_PROBE = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def compiled_in() -> list[str]:
    """The providers of this onnxruntime build. Whether they start on this machine: `started`."""
    with _printing_to_stderr():
        onnxruntime.preload_dlls()  # loads CUDA's libraries from pip packages, if there are any
    return available()


def available() -> list[str]:
    """The same, for those of which the libraries are loaded already or found by themselves."""
    return list(onnxruntime.get_available_providers())


def started(providers: Sequence[str]) -> list[str]:
    """The providers that a session really gets when it asks for `providers`: without a driver, only the CPU's."""
    try:
        return list(_open(_PROBE, Execution(tuple(providers), 1)).get_providers())
    except Exception:  # onnxruntime's exceptions share no base class
        return []


@functools.cache
def prefer_gpu(compiled_in: CompiledIn = compiled_in, started: Started = started) -> tuple[str, ...]:
    """The GPU's provider before the CPU's, where this onnxruntime has one that starts here; else the CPU's alone."""
    return (GPU, *CPU) if GPU in compiled_in() and GPU in started((GPU,)) else CPU


def cpu_limit(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Whole CPUs that this process may use: its affinity, and its container's quota, rounded up."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = affinity or own
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _tensor(t: onnxruntime.NodeArg) -> tuple[str, str, tuple[int, ...]]:
    shape = tuple(size if isinstance(size, int) else -1 for size in t.shape)
    return t.name, _ORT_TYPES.get(t.type, t.type), shape


def _signature(tensor: Tensor) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, tensor.dtype, tensor.shape


# --- external data ---------------------------------------------------------------------------------------------
# The service does not depend on the onnx package, because of its size. It only needs to know which messages can
# contain a TensorProto, by field number, and the two fields of a TensorProto that refer to other files:
#
#   ModelProto ── 7 graph ── GraphProto ── 1 node, 5 initializer, 15 sparse_initializer
#              ├─ 20 training_info ── 1, 2 graph
#              └─ 25 functions ── 7 node
#   NodeProto ── 5 attribute ── AttributeProto ── 5 t, 6 g, 10 tensors, 11 graphs, 22 sparse_tensor, 23 sparse_tensors
#   TensorProto ── 8 name, 13 external_data { 1 key, 2 value }, 14 data_location (1 = external)
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_MOST_NESTED = 64


def external_data(model: bytes, where: str) -> Iterator[tuple[str, str]]:
    """(weight, location) of every tensor whose data lies in another file."""
    try:
        yield from _external(memoryview(model), "model", 0)
    except (IndexError, ValueError, RecursionError) as error:
        raise GraphMismatch(f"{where}: not an ONNX graph: {error}") from None


def _external(message: memoryview, kind: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _MOST_NESTED:
        raise ValueError("messages are nested too deeply")
    if kind == "tensor":
        yield from _external_tensor(message)
        return
    children = _CHILDREN[kind]
    for field, value in _fields(message):
        if field in children and isinstance(value, memoryview):
            yield from _external(value, children[field], depth + 1)


def _external_tensor(message: memoryview) -> Iterator[tuple[str, str]]:
    name, location, external = "", "", False
    for field, value in _fields(message):
        if field == 8 and isinstance(value, memoryview):
            name = bytes(value).decode(errors="replace")
        elif field == 13 and isinstance(value, memoryview):
            external = True
            entry = {f: bytes(v).decode(errors="replace") for f, v in _fields(value) if isinstance(v, memoryview)}
            if entry.get(1) == "location":
                location = entry.get(2, "")
        elif field == 14 and isinstance(value, int):
            external = external or value & 0xFFFFFFFF == 1  # parsers truncate an enum to 32 bits
    if external:
        yield name, location


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) pairs of a protobuf message; length-delimited values are views, not copies."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if not 8 <= key < 1 << 32:  # other parsers truncate a longer key to 32 bits and would read another field
            raise ValueError(f"field key {key}")
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
            case 1:
                at += 8
            case 2:
                length, at = _varint(message, at)
                if length > len(message) - at:
                    raise ValueError("a field extends past the end of its message")
                yield key >> 3, message[at : at + length]
                at += length
            case 5:
                at += 4
            case wire:
                raise ValueError(f"wire type {wire}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a varint has more than ten bytes")
