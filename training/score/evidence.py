"""Class activation: each place's share of the logits of a head that is linear on the average of a map. No torch.

With a map m of P places, its average x and a head W (x - centre) + bias, place p adds W (m_p - centre) / P: over all
places these add up to the logits without the bias. x may be the average of the map's last channels alone.
"""

import numpy as np
from onnx import helper

from app.bundle.manifest import Graph, Tensor
from training.networks.spans import spread
from training.score.onnx_model import serialised

SIDE = 7  # rows and columns of what is given, at most: those of a backbone's last map at 224 pixels


def map_of(encoder: Graph, reads: str) -> Tensor | None:
    """The map whose average, or that of its last channels, is `embedding` or `features`; None if there is none."""
    given = {tensor.name: tensor for tensor in encoder.outputs}
    found = given.get("map")
    # More features than channels are of finer cells, or have maxima beside the averages.
    return found if found is not None and given[reads].shape[1] <= found.shape[1] else None


def graph(map_: Tensor, labels: int) -> Graph:
    """What the graph takes and gives; `map_` is (N, channels, rows, columns)."""
    rows, columns = (min(SIDE, side) for side in map_.shape[2:])
    evidence = Tensor(name="evidence", dtype="float32", shape=(-1, labels, rows, columns))
    return Graph(file="explain.onnx", input=map_, outputs=(evidence,))


def to_onnx(weight: np.ndarray, centre: np.ndarray | None, stated: Graph, opset: int) -> bytes:
    """`weight` (size of x, labels) of the head, as it is applied to (x - centre)."""
    taken, given = stated.input, stated.outputs[0]
    _, channels, height, width = taken.shape
    places = height * width
    offset = np.zeros(weight.shape[1], np.float32) if centre is None else -centre @ weight
    weight = np.pad(weight, ((channels - len(weight), 0), (0, 0)))
    weights = {
        "weight": np.ascontiguousarray(weight.T).reshape(-1, channels, 1, 1) / places,
        "offset": offset / places,
    }
    nodes = [helper.make_node("Conv", [taken.name, "weight", "offset"], ["places"])]
    found = "places"
    if height > given.shape[2]:
        weights["rows"] = spread(height, given.shape[2])
        nodes.append(helper.make_node("MatMul", ["rows", found], ["by_row"]))
        found = "by_row"
    if width > given.shape[3]:
        weights["columns"] = spread(width, given.shape[3]).T
        nodes.append(helper.make_node("MatMul", [found, "columns"], ["by_column"]))
    nodes[-1].output[0] = given.name
    return serialised("evidence", nodes, weights, stated=stated, opset=opset)
