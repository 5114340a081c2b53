"""Triton, brought by PyTriton, around a function in Python; batches of what has queued, without a delay."""

import numpy as np
from graph import Graphs, port_and_bundle
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

port, folder = port_and_bundle()
graphs = Graphs(folder)


@batch
def infer(image):
    return {"probabilities": graphs.probabilities(image)}


if __name__ == "__main__":
    config = TritonConfig(
        http_port=port, grpc_port=port + 1, metrics_port=port + 2, http_address="127.0.0.1", log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=infer,
            inputs=[Tensor(name="image", dtype=np.uint8, shape=graphs.shape)],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(len(graphs.labels),))],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
