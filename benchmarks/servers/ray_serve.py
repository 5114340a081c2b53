"""Ray Serve as its documentation has it: a deployment with FastAPI's ingress, one replica."""

import time

import numpy as np
import ray
from fastapi import FastAPI, File, UploadFile
from graph import Graphs, port_and_bundle
from ray import serve

port, folder = port_and_bundle()
app = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=128, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Classifier:
    def __init__(self) -> None:
        self.graphs = Graphs(folder)

    @app.post("/classify")
    async def classify(self, image: list[UploadFile] = File()):  # noqa: B008
        pixels = np.stack([self.graphs.pixels(await each.read()) for each in image])
        return {"results": self.graphs.classify(pixels)}


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    serve.run(Classifier.bind())
    while True:
        time.sleep(60)
