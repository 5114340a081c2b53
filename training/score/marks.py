"""The distances of a network that marks defects, in the graph of a memory of patches' place. No torch.

A place's distance is softplus(mark + 4), of logits: 0 where it is sound beyond doubt, and never below. An image's is
the mean of its largest, as that of patches is.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, checker, helper, load_from_string, numpy_helper

from app.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP, Graph
from app.bundle.scoring import PATCHES
from training.data.imageset import ImageSet
from training.measure.outputs import outputs_of
from training.score.patches import IR_VERSION, TOP

GRAPH = "marks"  # the name inside the file
_RAISED = 4.0  # by which logits are raised: most sound places are below -4


def to_onnx(stated: Graph, opset: int) -> bytes:
    taken, (distances, distance) = stated.input, stated.outputs
    _, _, rows, columns = taken.shape
    weights = {
        "raised": np.array([_RAISED], np.float32),
        "grid": np.array([0, rows, columns]),
        "flat": np.array([0, rows * columns]),
        "count": np.array([max(1, round(TOP * rows * columns))]),
        "places": np.array([1]),
    }
    nodes = [
        helper.make_node("Add", [taken.name, "raised"], ["logits"]),
        helper.make_node("Softplus", ["logits"], ["positive"]),
        helper.make_node("Reshape", ["positive", "grid"], [distances.name]),
        helper.make_node("Reshape", ["positive", "flat"], ["by_place"]),
        helper.make_node("TopK", ["by_place", "count"], ["largest", "where"], axis=1),
        helper.make_node("ReduceMean", ["largest", "places"], [distance.name], keepdims=1),
    ]
    ends = [
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, ["batch", *tensor.shape[1:]])
        for tensor in (taken, distances, distance)
    ]
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, GRAPH, inputs=ends[:1], outputs=ends[1:], initializer=initialisers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def are_in(model: bytes) -> bool:
    """Whether a bundle's graph is one of these: it has no memory that could be of other images."""
    return bool(load_from_string(model).graph.name == GRAPH)


def across(bundles: Sequence[Bundle], data: ImageSet, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((N, 1) distance of each image by its fold's bundle, which has not seen it; (N,) the largest values of the
    images' maps by the same, ascending)."""
    distances, peaks = np.empty((len(data), 1), np.float32), np.empty(len(data), np.float32)
    for number, bundle in enumerate(bundles):
        held = np.flatnonzero(folds == number)
        some, label = data.take(held), f"out of fold {number + 1} of {len(bundles)}"
        found = outputs_of(bundle, some, label, (PATCHES, ANOMALY_MAP)).encoded
        distances[held] = found[PATCHES]
        peaks[held] = [bundle.place(each[None]).max() for each in found[ANOMALY_MAP]]
    return distances, np.sort(peaks)
