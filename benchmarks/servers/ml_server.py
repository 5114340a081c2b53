"""MLServer with a runtime of its own, in one process (which is its fastest), without its batching."""

import asyncio

import numpy as np
from graph import Graphs, port_and_bundle
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

port, folder = port_and_bundle()


class Classifier(MLModel):
    async def load(self) -> bool:
        self.graphs = Graphs(folder)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [taken] = payload.inputs
        chances = self.graphs.probabilities(np.array(taken.data.root, np.uint8).reshape(taken.shape))
        data = chances.ravel().tolist()
        output = ResponseOutput(name="probabilities", datatype="FP32", shape=list(chances.shape), data=data)
        return InferenceResponse(model_name=self.name, outputs=[output])


if __name__ == "__main__":
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_port=port + 2,
        parallel_workers=0,
        debug=False,
        use_structured_logging=False,
    )
    asyncio.run(MLServer(settings).start([ModelSettings(name="classifier", implementation=Classifier)]))
