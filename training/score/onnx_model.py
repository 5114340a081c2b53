"""An ONNX model from nodes and arrays, checked. No torch."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper

from app.bundle.manifest import Graph

_IR_VERSION = 10  # onnxruntime reads it since 1.18


def serialised(
    name: str, nodes: Sequence[NodeProto], weights: Mapping[str, np.ndarray], stated: Graph, opset: int
) -> bytes:
    """`stated` names what the nodes take and give. Whole numbers become int64, all others float32."""
    ends = [
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, ["batch", *tensor.shape[1:]])
        for tensor in (stated.input, *stated.outputs)
    ]
    initialisers = [
        numpy_helper.from_array(np.asarray(array, np.int64 if array.dtype.kind == "i" else np.float32, "C"), each)
        for each, array in weights.items()
    ]
    made = helper.make_graph(nodes, name, inputs=ends[:1], outputs=ends[1:], initializer=initialisers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]
