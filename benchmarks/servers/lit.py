"""LitServe as its documentation has it: decode, predict, encode; one worker on the CPU, no batching."""

import litserve
import numpy as np
from fastapi import Request
from graph import Graphs, port_and_bundle

port, folder = port_and_bundle()


class Classify(litserve.LitAPI):
    def setup(self, device):
        self.graphs = Graphs(folder)

    def decode_request(self, request: Request):  # what comes is the form
        return np.stack([self.graphs.pixels(each.file.read()) for each in request.getlist("image")])

    def predict(self, images):
        return self.graphs.classify(images)

    def encode_response(self, output):
        return {"results": output}


if __name__ == "__main__":
    server = litserve.LitServer(Classify(api_path="/classify"), accelerator="cpu", workers_per_device=1)
    server.run(port=port, host="127.0.0.1", log_level="warning", generate_client_file=False)
