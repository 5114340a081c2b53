"""What every server but the floor does with an image: Pillow, the bundle's classifier graphs, softmax, a dict.

Runs in any peer's environment: numpy, Pillow, onnxruntime and the bundle's files are all it needs.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def port_and_bundle() -> tuple[int, Path]:
    return int(sys.argv[1]), Path(sys.argv[2])


class Graphs:
    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        self.shape = tuple(manifest["input"][side] for side in ("height", "width", "channels"))
        self.labels = manifest["classifier"]["labels"]
        self.temperature = manifest["classifier"]["temperature"]
        self._folder, self._graphs = folder, manifest["graphs"]
        self._encoder, self._head = self._session("encoder"), self._session("head")

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the server has one core
        return onnxruntime.InferenceSession(str(self._folder / self._graphs[name]["file"]), options)

    def pixels(self, data: bytes) -> np.ndarray:
        """(H, W, C) uint8"""
        height, width, channels = self.shape
        image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(self.shape)

    def classify(self, images: np.ndarray) -> list[dict[str, object]]:
        """(N, H, W, C) uint8 → for each image its label and probabilities."""
        return [self._told(each) for each in self.probabilities(images).tolist()]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(N, labels) float32"""
        return softmax(self.logits(images) / np.float32(self.temperature))

    def logits(self, images: np.ndarray) -> np.ndarray:
        taken = self._graphs["head"]["input"]["name"]
        [encoded] = self._encoder.run([taken], {"image": images})
        return self._head.run(["logits"], {taken: encoded})[0]

    def _told(self, probabilities: list[float]) -> dict[str, object]:
        label = self.labels[max(range(len(probabilities)), key=probabilities.__getitem__)]
        return {"label": label, "probabilities": dict(zip(self.labels, probabilities, strict=True))}

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self._encoder.run(["embedding"], {"image": images})[0]

    def errors(self, images: np.ndarray) -> list[float]:
        """Mean squared errors of the reconstructions: an anomaly score as most would write it."""
        if not hasattr(self, "_decoder"):
            self._decoder = self._session("decoder")
        [drawn] = self._decoder.run(["reconstruction"], {"embedding": self.encode(images)})
        return ((drawn - images / np.float32(255)) ** 2).mean(axis=(1, 2, 3)).tolist()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
