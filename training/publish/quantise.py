"""fp32 graphs → int8 graphs (static QDQ), calibrated on training images."""

import logging
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from app.bundle import Bundle
from app.bundle.golden import TOLERANCE
from app.bundle.manifest import PATCH_FEATURES, Graph, Metric, Tensor
from app.bundle.session import Session, cpu_limit
from training.data.imageset import ImageSet
from training.measure import drawn_domains
from training.measure.metrics import accuracy, measured_labels
from training.measure.outputs import outputs_of
from training.progress import say
from training.publish.onnx import Exported
from training.recipe import Export

IMAGES = 1000  # to find the ranges of activations; fewer, where they are large
_ALL_PIXELS = 1 << 24  # of them together
_BATCH = 50
_PIXELS = 1 << 19  # of a batch
_OPERATORS = ["Conv", "Add", "Relu", "Clip"]  # linear layers are small and stay in fp32
_LARGEST = 64  # of a weight, rounded to seven bits: 2 · 64 · 255 is the most that two products add up to in 16 bits
_LARGEST_DEPTHWISE = 127
_WITH_MAPS = 128  # images whose places are compared, at most
_BATCH_WITH_MAPS = 8
_COLOURS = 4  # channels of pixels, at most
_OBSERVED = 20  # batches that tell how inputs vary together
_DAMPING = 0.01  # of the mean second moment, added to each
_LEAST_OFF = (
    0.01  # of a tensor's scale: some values round to the neighbouring one of 256 steps, and layers after it see that
)
_MOST_OFF = 0.05  # the largest tolerance that a manifest may state


def quantised(exported: Exported, train: ImageSet) -> Exported:
    """Encoder and decoder in int8, the rest in fp32; each tensor with the tolerance that it needs."""
    height, width, _ = exported.spec.shape
    count = min(IMAGES, max(_BATCH, _ALL_PIXELS // (height * width)))
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:count])
    batch = max(1, min(_BATCH, _PIXELS // (height * width)))
    images = [train.images[part] for part in np.array_split(chosen, max(1, len(chosen) // batch))]
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
    score, and what it reads of each place where it remembers patches.
    """
    checks = [_embeddings(before, after, validation, limits.least_cosine)]
    if before.head is not None:
        checks.append(_accuracy(before, after, labelled, limits.most_lost))
    if before.scorer is not None:
        checks.append(_detection(before, after, limits.most_auroc_lost))
    if before.patches is not None:
        checks.append(_places(before, after, validation, limits.least_cosine))
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
    """Each less the mean of its own kind: codes behind a ReLU are alike as they are, and what integers move alike moves
    no distance between two of them."""
    floats, integers = (
        outputs_of(each, images, "int8 gate", ("embedding",)).encoded["embedding"] for each in (before, after)
    )
    cosine = float(_cosines(*(each - each.mean(axis=0) for each in (floats, integers))).mean())
    how = f"mean over validation images, each embedding less their mean; at least {least:g} is allowed"
    found = f"cosine {cosine:.4f} between embeddings in integers and in floats"
    return _Check(
        metric="int8_embedding_cosine", value=cosine, images=len(images), how=how, found=found, passed=cosine >= least
    )


def _cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((some * others).sum(axis=1) / np.maximum(lengths, 1e-12))


def _accuracy(before: Bundle, after: Bundle, labelled: ImageSet, most_lost: float) -> _Check:
    if labelled.several is not None:
        return _average_precision(before, after, labelled, most_lost)
    floats, integers = (accuracy(each, labelled, "int8 gate") for each in (before, after))
    how = f"fp32 less int8 on validation images; at most {most_lost:g} is allowed"
    found = f"{integers:.4f} of validation images classified correctly, fp32 {floats:.4f}"
    return _lost("int8_accuracy_lost", floats - integers, most_lost, images=len(labelled), how=how, found=found)


def _average_precision(before: Bundle, after: Bundle, labelled: ImageSet, most_lost: float) -> _Check:
    """In the place of accuracy, where an image may have several labels."""
    found = []
    for each in (before, after):
        measured = measured_labels(each, labelled, outputs_of(each, labelled, "int8 gate", ("logits",)))
        assert measured is not None  # both have a head, and thresholds
        found.append(measured.mean_average_precision)
    floats, integers = found
    how = f"mean over labels, fp32 less int8 on validation images; at most {most_lost:g} is allowed"
    text = f"average precision {integers:.4f} of labels of validation images, fp32 {floats:.4f}"
    return _lost("int8_average_precision_lost", floats - integers, most_lost, images=len(labelled), how=how, found=text)


def _places(before: Bundle, after: Bundle, images: ImageSet, least: float) -> _Check:
    """Of the maps that the memory of patches reads, each place less the mean over a batch of its own kind."""
    some = images.take(np.linspace(0, len(images) - 1, min(len(images), _WITH_MAPS)).astype(int))
    cosines = []
    for start in range(0, len(some), _BATCH_WITH_MAPS):
        batch = some.images[start : start + _BATCH_WITH_MAPS]
        floats, integers = (each.encode(batch, patches=True)[PATCH_FEATURES] for each in (before, after))
        centred = (each - each.mean(axis=(0, 2, 3), keepdims=True) for each in (floats, integers))
        rows = [np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in centred]
        cosines.append(_cosines(*rows))
    cosine = float(np.concatenate(cosines).mean())
    how = f"mean over places of validation images, each less their mean; at least {least:g} is allowed"
    found = f"cosine {cosine:.4f} between places in integers and in floats"
    return _Check("int8_patch_cosine", cosine, images=len(some), how=how, found=found, passed=cosine >= least)


def _detection(before: Bundle, after: Bundle, most_lost: float) -> _Check:
    """By the worst of the drawn domains, against the scores of normals that set the threshold: a memory of patches may
    hold the validation images, but each of these is measured by folds that do not hold it."""
    scorers = [each.scorer for each in (before, after)]
    normals = [scorer.calibration for scorer in scorers if scorer is not None]
    areas = zip((before, after), normals, strict=True)
    floats, integers = (min(drawn_domains.aurocs(each, scores).values()) for each, scores in areas)
    how = f"fp32 less int8, the lowest AUROC of held-out normals against drawn images; at most {most_lost:g} is allowed"
    found = f"AUROC {integers:.4f} against drawn images, fp32 {floats:.4f}"
    return _lost("int8_auroc_lost", floats - integers, most_lost, images=len(normals[0]), how=how, found=found)


def _lost(metric: str, lost: float, most: float, *, images: int, how: str, found: str) -> _Check:
    within = lost <= most + 1e-9  # for rounding: accuracies are shares of whole images
    return _Check(metric=metric, value=lost, images=images, how=how, found=found, passed=within)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, batches: list[np.ndarray]) -> None:
        self._left: Iterator[dict[str, np.ndarray]] = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def _static(model: bytes, graph: Graph, batches: list[np.ndarray]) -> bytes:
    """Weights have seven bits where processors without VNNI would overflow, and all processors agree."""
    level = logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder) / f"{name}.onnx") for name in ("source", "prepared", "target"))
        Path(source).write_bytes(model)
        try:
            logging.getLogger().setLevel(logging.ERROR)  # it advises the preprocessing that is done here
            quant_pre_process(source, prepared)
            floats = onnx.load(prepared)
            in_floats = _first(floats)
            rounded, steps = _rounded(floats, graph, in_floats, batches[:_OBSERVED])
            Path(prepared).write_bytes(rounded.SerializeToString())
            quantize_static(
                prepared,
                target,
                _Batches(graph.input.name, batches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=_OPERATORS,
                nodes_to_exclude=in_floats,
                per_channel=True,
                reduce_range=True,
                extra_options={"TensorQuantOverrides": {name: _by_channel(step) for name, step in steps.items()}},
            )
        finally:
            logging.getLogger().setLevel(level)
        return Path(target).read_bytes()


def _by_channel(steps: np.ndarray) -> list[dict[str, Any]]:
    zero = np.array(0, np.int8)
    return [
        {"axis": 0, "quant_type": QuantType.QInt8, "scale": np.array(step, np.float32), "zero_point": zero}
        for step in steps
    ]


def _first(model: onnx.ModelProto) -> list[str]:
    """Convolutions that read pixels. Few channels gain nothing by integers, and all that follows has their errors."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in shapes and shapes[node.input[1]][1] * _groups(node) <= _COLOURS
    ]


def _rounded(
    model: onnx.ModelProto, graph: Graph, in_floats: Collection[str], batches: list[np.ndarray]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with the convolutions' weights rounded, and the steps (channels,) to which they are.

    Rounding moves the mean of each channel that a convolution gives; its bias moves it back, by (rounded - weight) ·
    the channels' mean input (Nagel et al. 2019). The weights of 1×1 convolutions round to what changes their output
    least (`compensated`). Without either, errors add up in a deep network of depthwise convolutions.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and len(node.input) == 3
        and all(name in weights for name in node.input[1:])
        and node.name not in in_floats
    ]
    channels = {node.input[0]: weights[node.input[1]].dims[1] * _groups(node) for node in convolutions}
    pointwise = {node.input[0] for node in convolutions if _is_pointwise(node, weights[node.input[1]])}
    means, moments = _inputs(model, graph, channels, pointwise=pointwise, batches=batches)
    steps = {}
    for node in convolutions:
        weight, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        largest = _LARGEST_DEPTHWISE if _is_depthwise(node, weight) else _LARGEST
        step = np.maximum(np.abs(weight).reshape(len(weight), -1).max(axis=1) / largest, 1e-20)
        flat, inputs = weight.reshape(len(weight), -1), means[node.input[0]]
        if _is_pointwise(node, weights[node.input[1]]):
            rounded = compensated(flat, moments[node.input[0]], step, largest)
        else:
            rounded = np.round(flat / step[:, None]) * step[:, None]
        moved = (rounded - flat).reshape(*weight.shape[:2], -1).sum(axis=2)
        groups = _groups(node)
        inputs = np.repeat(inputs.reshape(groups, -1), len(weight) // groups, axis=0)  # of each channel
        changed = {1: rounded.reshape(weight.shape), 2: bias - (moved * inputs).sum(axis=1)}
        for place, array in changed.items():
            name = f"{node.input[place]}_{node.output[0]}_rounded"  # a weight may be that of several nodes
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
            node.input[place] = name
        steps[node.input[1]] = step
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]  # of others onnxruntime warns
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model, steps


def compensated(weight: np.ndarray, moments: np.ndarray, step: np.ndarray, largest: int) -> np.ndarray:
    """(M, K) weights rounded to multiples of `step` (M,): each rounding error is made up for by the weights after it.

    `moments` (K, K) are those of the inputs, so that inputs which vary together count as one (GPTQ, Frantar et al.
    2023). The largest inputs come first.
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    left = weight[:, order].astype(np.float64)
    damped = moments[np.ix_(order, order)] + np.eye(len(moments)) * max(_DAMPING * float(np.diag(moments).mean()), 1e-9)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rounded = np.empty_like(left)
    for place in range(len(order)):
        rounded[:, place] = np.clip(np.round(left[:, place] / step), -largest, largest) * step
        error = (left[:, place] - rounded[:, place]) / upper[place, place]
        left[:, place + 1 :] -= np.outer(error, upper[place, place + 1 :])
    return rounded[:, np.argsort(order)]


def _inputs(
    model: onnx.ModelProto, graph: Graph, channels: dict[str, int], pointwise: set[str], batches: list[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """((channels,) means, (channels, channels) second moments of those in `pointwise`) of tensors (N, channels, …),
    over images and places."""
    if not channels:
        return {}, {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name)
        for name, value in {"watched_shape": [0, 0, -1], "watched_row": [0, -1], "watched_last": [1]}.items()
    )
    outputs = []
    for number, (tensor, size) in enumerate(channels.items()):
        flat, first, rows, columns, mean, moments = (
            f"watched_{part}_{number}" for part in ("flat", "first", "rows", "columns", "mean", "moments")
        )
        watched.graph.node.extend(
            [
                helper.make_node("Reshape", [tensor, "watched_shape"], [flat]),
                helper.make_node("Transpose", [flat], [first], perm=[1, 0, 2]),
                helper.make_node("Reshape", [first, "watched_row"], [rows]),
                helper.make_node("ReduceMean", [rows, "watched_last"], [mean], keepdims=1),
            ]
        )
        outputs.append(Tensor(name=mean, dtype="float32", shape=(size, 1)))
        if tensor in pointwise:
            watched.graph.node.append(helper.make_node("Transpose", [rows], [columns], perm=[1, 0]))
            watched.graph.node.append(helper.make_node("MatMul", [rows, columns], [moments]))
            outputs.append(Tensor(name=moments, dtype="float32", shape=(size, size)))
    watched.graph.output.extend(
        helper.make_tensor_value_info(each.name, TensorProto.FLOAT, each.shape) for each in outputs
    )
    stated = graph.model_copy(update={"outputs": tuple(outputs)})
    session = Session(watched.SerializeToString(), stated, graph.file, threads=cpu_limit())
    sums = {each.name: np.zeros(each.shape) for each in outputs}
    for batch in batches:
        found = session.run(batch)
        for name, total in sums.items():
            total += found[name] * (len(batch) if "mean" in name else 1)
    count = sum(map(len, batches))
    means = {tensor: sums[f"watched_mean_{number}"][:, 0] / count for number, tensor in enumerate(channels)}
    return means, {
        tensor: sums[f"watched_moments_{number}"] for number, tensor in enumerate(channels) if tensor in pointwise
    }


def _is_pointwise(node: onnx.NodeProto, weight: TensorProto) -> bool:
    return _groups(node) == 1 and all(side == 1 for side in weight.dims[2:]) and not _strided(node)


def _is_depthwise(node: onnx.NodeProto, weight: np.ndarray) -> bool:
    """A filter for each channel: onnxruntime adds up its products without overflow on every processor."""
    return _groups(node) == len(weight) > 1 and weight.shape[1] == 1


def _strided(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "strides" and set(attribute.ints) != {1} for attribute in node.attribute)


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _steps(model: bytes, graph: Graph, batch: np.ndarray) -> dict[str, float]:
    """Tolerance by tensor: how far results of another processor may be off.

    The graph runs with integer kernels and, unoptimised, with floats between quantisation steps. Two machines hardly
    differ more than these two runs do.
    """
    integers, floats = (
        Session(model, graph, graph.file, threads=1, level=level).run(batch) for level in ("all", "none")
    )
    steps = {}
    for name, exact in floats.items():
        off = float(np.abs(integers[name] - exact).max()) / max(1.0, float(np.abs(exact).max()))
        steps[name] = min(_MOST_OFF, max(_LEAST_OFF, 2 * off))
    return steps
