"""fp32 graphs → int8 graphs (static QDQ), calibrated on training images."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from app.bundle import Bundle
from app.bundle.golden import TOLERANCE
from app.bundle.manifest import Graph, Metric, Tensor
from app.bundle.session import Session
from training.data.imageset import ImageSet
from training.measure import drawn_domains
from training.measure.metrics import accuracy
from training.measure.outputs import outputs_of
from training.progress import say
from training.publish.onnx import Exported
from training.recipe import Export

IMAGES = 1000  # to find the ranges of activations
_BATCH = 50
_OPERATORS = ["Conv", "Add", "Relu", "Clip"]  # linear layers are small and stay in fp32
_LARGEST = 64  # of a weight, rounded to seven bits
_LEAST_OFF = (
    0.01  # of a tensor's scale: some values round to the neighbouring one of 256 steps, and layers after it see that
)
_MOST_OFF = 0.05  # the largest tolerance that a manifest may state


def quantised(exported: Exported, train: ImageSet) -> Exported:
    """Encoder and decoder in int8, the rest in fp32; each tensor with the tolerance that it needs."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:IMAGES])
    images = [train.images[part] for part in np.array_split(chosen, max(1, len(chosen) // _BATCH))]
    graphs, files, tolerances = exported.graphs, dict(exported.files), dict(exported.tolerances)

    files[graphs.encoder.file] = _static(files[graphs.encoder.file], graphs.encoder, images)
    encode = Session(files[graphs.encoder.file], graphs.encoder, graphs.encoder.file, threads=1)
    tolerances |= _steps(files[graphs.encoder.file], graphs.encoder, images[0])
    vectors = [tensor.name for tensor in graphs.encoded]
    encoded = [encode.run(part, vectors) for part in images]
    if graphs.decoder is not None:
        codes = [part[graphs.decoder.input.name] for part in encoded]
        files[graphs.decoder.file] = _static(files[graphs.decoder.file], graphs.decoder, codes)
        tolerances |= _steps(files[graphs.decoder.file], graphs.decoder, codes[0])
    coarsest = max(tolerances.get(tensor.name, TOLERANCE) for tensor in graphs.encoder.outputs)
    for graph in (graphs.decoder, graphs.head, graphs.explain):  # their input may be off by this much
        for tensor in graph.outputs if graph else ():
            tolerances[tensor.name] = max(coarsest, tolerances.get(tensor.name, TOLERANCE))
    return replace(exported, files=files, tolerances=tolerances)


@dataclass(frozen=True)
class _Check:
    """A measure of what int8 costs, and whether that is allowed."""

    metric: str
    value: float
    images: int
    how: str
    found: str  # for people
    passed: bool


def gate(
    before: Bundle, after: Bundle, validation: ImageSet, *, labelled: ImageSet, limits: Export
) -> tuple[bool, tuple[Metric, ...]]:
    """(whether int8 keeps what fp32 can do, what it costs as metrics); bundles in floats and in integers.

    Embeddings count always, accuracy where there is a classifier (`labelled` have labels), detection where there is a
    score.
    """
    checks = [_embeddings(before, after, validation, limits.least_cosine)]
    if before.head is not None:
        checks.append(_accuracy(before, after, labelled, limits.most_lost))
    if before.scorer is not None:
        checks.append(_detection(before, after, validation, limits.most_auroc_lost))
    kept = all(check.passed for check in checks)
    verdict = "kept" if kept else "refused, fp32 is published"
    for check in checks:
        say(f"int8: {check.found}{'' if check.passed else ': too much'}")
    say(f"int8: {verdict}")
    return kept, tuple(
        Metric(name=check.metric, value=check.value, images=check.images, how=f"{check.how}: {verdict}")
        for check in checks
    )


def _embeddings(before: Bundle, after: Bundle, images: ImageSet, least: float) -> _Check:
    """Each less the mean embedding in floats: codes behind a ReLU are alike as they are."""
    floats, integers = (
        outputs_of(each, images, "int8 gate", ("embedding",)).encoded["embedding"] for each in (before, after)
    )
    mean = floats.mean(axis=0)
    cosine = float(_cosines(floats - mean, integers - mean).mean())
    how = f"mean over validation images, each embedding less their mean; at least {least:g} is allowed"
    found = f"cosine {cosine:.4f} between embeddings in integers and in floats"
    return _Check(
        metric="int8_embedding_cosine", value=cosine, images=len(images), how=how, found=found, passed=cosine >= least
    )


def _cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((some * others).sum(axis=1) / np.maximum(lengths, 1e-12))


def _accuracy(before: Bundle, after: Bundle, labelled: ImageSet, most_lost: float) -> _Check:
    floats, integers = (accuracy(each, labelled, "int8 gate") for each in (before, after))
    how = f"fp32 less int8 on validation images; at most {most_lost:g} is allowed"
    found = f"{integers:.4f} of validation images classified correctly, fp32 {floats:.4f}"
    return _lost("int8_accuracy_lost", floats - integers, most_lost, images=len(labelled), how=how, found=found)


def _detection(before: Bundle, after: Bundle, images: ImageSet, most_lost: float) -> _Check:
    """By the worst of the drawn domains."""
    areas = []
    for each in (before, after):
        scores = outputs_of(each, images, "int8 gate", ("scores",)).scores
        assert scores is not None  # the bundle has a score
        areas.append(min(drawn_domains.aurocs(each, scores).values()))
    floats, integers = areas
    how = f"fp32 less int8, the lowest AUROC of validation images against drawn ones; at most {most_lost:g} is allowed"
    found = f"AUROC {integers:.4f} against drawn images, fp32 {floats:.4f}"
    return _lost("int8_auroc_lost", floats - integers, most_lost, images=len(images), how=how, found=found)


def _lost(metric: str, lost: float, most: float, *, images: int, how: str, found: str) -> _Check:
    within = lost <= most + 1e-9  # for rounding: accuracies are shares of whole images
    return _Check(metric=metric, value=lost, images=images, how=how, found=found, passed=within)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, batches: list[np.ndarray]) -> None:
        self._left: Iterator[dict[str, np.ndarray]] = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def _static(model: bytes, graph: Graph, batches: list[np.ndarray]) -> bytes:
    """`reduce_range` keeps weights to seven bits: processors without VNNI do not overflow, and agree."""
    level = logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder) / f"{name}.onnx") for name in ("source", "prepared", "target"))
        Path(source).write_bytes(model)
        try:
            logging.getLogger().setLevel(logging.ERROR)  # it advises the preprocessing that is done here
            quant_pre_process(source, prepared)
            corrected = _bias_corrected(onnx.load(prepared), graph, batches)
            Path(prepared).write_bytes(corrected.SerializeToString())
            quantize_static(
                prepared,
                target,
                _Batches(graph.input.name, batches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                reduce_range=True,
            )
        finally:
            logging.getLogger().setLevel(level)
        return Path(target).read_bytes()


def _bias_corrected(model: onnx.ModelProto, graph: Graph, batches: list[np.ndarray]) -> onnx.ModelProto:
    """Weights rounded to seven bits move the mean of each channel that a convolution gives; its bias moves it back.

    By (rounded - weight) · the channels' mean input (Nagel et al. 2019). In a deep network of depthwise convolutions
    the means would move far: the cosine between embeddings of Lite0 rises from 0.945 to 0.981.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and len(node.input) == 3 and all(name in weights for name in node.input[1:])
    ]
    channels = {node.input[0]: weights[node.input[1]].dims[1] * _groups(node) for node in convolutions}
    means = _mean_inputs(model, graph, channels, batches)
    for node in convolutions:
        weight, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        step = np.maximum(np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / _LARGEST, 1e-20)
        moved = (np.round(weight / step) * step - weight).reshape(*weight.shape[:2], -1).sum(axis=2)
        groups = _groups(node)
        inputs = np.repeat(means[node.input[0]].reshape(groups, -1), len(weight) // groups, axis=0)  # of each channel
        name = f"{node.input[2]}_{node.output[0]}_corrected"  # a bias may be that of several
        model.graph.initializer.append(
            numpy_helper.from_array((bias - (moved * inputs).sum(axis=1)).astype(np.float32), name)
        )
        node.input[2] = name
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]  # of others onnxruntime warns
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _mean_inputs(
    model: onnx.ModelProto, graph: Graph, channels: dict[str, int], batches: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """(channels,) of each of these tensors (N, channels, …), the mean over images and places."""
    if not channels:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for number, tensor in enumerate(channels):
        parts = [f"watched_{part}_{number}" for part in ("axes", "flat", "mean")]
        watched.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1]), parts[0]))
        watched.graph.node.append(helper.make_node("Reshape", [tensor, parts[0]], parts[1:2]))
        watched.graph.initializer.append(numpy_helper.from_array(np.array([2]), f"{parts[0]}_last"))
        watched.graph.node.append(helper.make_node("ReduceMean", [parts[1], f"{parts[0]}_last"], parts[2:], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(parts[2], TensorProto.FLOAT, ["batch", None]))
    outputs = tuple(
        Tensor(name=f"watched_mean_{number}", dtype="float32", shape=(-1, size))
        for number, size in enumerate(channels.values())
    )
    stated = graph.model_copy(update={"outputs": outputs})
    session = Session(watched.SerializeToString(), stated, graph.file, threads=1)
    sums = [np.zeros(1)] * len(outputs)
    for batch in batches:
        found = session.run(batch)
        sums = [total + found[tensor.name].sum(axis=0) for total, tensor in zip(sums, outputs, strict=True)]
    return {name: total / sum(map(len, batches)) for name, total in zip(channels, sums, strict=True)}


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _steps(model: bytes, graph: Graph, batch: np.ndarray) -> dict[str, float]:
    """Tolerance by tensor: how far results of another processor may be off.

    The graph runs with integer kernels and, unoptimised, with floats between quantisation steps. Two machines hardly
    differ more than these two runs do.
    """
    integers, floats = (
        Session(model, graph, graph.file, threads=1, optimise=optimise).run(batch) for optimise in (True, False)
    )
    steps = {}
    for name, exact in floats.items():
        off = float(np.abs(integers[name] - exact).max()) / max(1.0, float(np.abs(exact).max()))
        steps[name] = min(_MOST_OFF, max(_LEAST_OFF, 2 * off))
    return steps
