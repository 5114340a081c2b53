"""BentoML as its documentation has it: a service class, one API, files as paths; one worker, no batching."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
from graph import Graphs, port_and_bundle


@bentoml.service(workers=1)
class Classifier:
    def __init__(self) -> None:
        self.graphs = Graphs(Path(os.environ["BUNDLE"]))

    @bentoml.api
    def classify(self, image: list[Path]) -> dict:
        return {"results": self.graphs.classify(np.stack([self.graphs.pixels(each.read_bytes()) for each in image]))}


if __name__ == "__main__":
    port, folder = port_and_bundle()
    os.environ |= {"BUNDLE": str(folder), "BENTOML_DO_NOT_TRACK": "true"}
    os.chdir(Path(__file__).parent)
    serve = ["-m", "bentoml", "serve", "bento:Classifier", "--port", str(port), "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *serve])
