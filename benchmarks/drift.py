"""Whether drift is noticed, and nothing else is: over HTTP, with the test images that nothing was calibrated on.

    make drift              # the default model; or: make drift MODEL=fashion-mnist-seed

A hundred windows of its own test images, each drawn anew, say how often chance alone alarms. Then traffic turns:
to MNIST, to mirrored and to upside-down garments, five times each, and it is counted after how many images it is said.
"""

import argparse
from collections.abc import Iterator

import httpx
import numpy as np

from app.bundle.encode import png_of
from app.bundle.manifest import InputSpec
from benchmarks.bars import Bar
from benchmarks.service import serving
from training.data.read import read_part

WINDOWS, TURNS, MOST, STEP = 100, 5, 500, 20


class Service:
    def __init__(self, client: httpx.Client, model: str) -> None:
        self._client, self._model = client, model
        output = client.get(f"/v1/models/{model}").raise_for_status().json()
        self.spec = InputSpec.model_validate(output["manifest"]["input"])

    def serve(self, images: np.ndarray) -> None:
        for at in range(0, len(images), STEP):
            files = [("image", (f"{n}.png", png_of(image))) for n, image in enumerate(images[at : at + STEP])]
            self._client.post(f"/v1/predict?model={self._model}", files=files).raise_for_status()

    def drifted(self) -> bool:
        output = self._client.get(f"/v1/models/{self._model}/drift").raise_for_status().json()
        return bool(output["drifted"])

    def window(self) -> int:
        output = self._client.get(f"/v1/models/{self._model}/drift").raise_for_status().json()
        return int(output["window"])


def measure(service: Service) -> Iterator[Bar]:
    rng = np.random.default_rng(0)
    own = np.asarray(read_part("fashion-mnist", "test", service.spec).images)
    size, alarms = service.window(), 0

    def some(images: np.ndarray, count: int) -> np.ndarray:
        return images[rng.choice(len(images), count, replace=False)]

    for _ in range(WINDOWS):
        service.serve(some(own, size))
        alarms += service.drifted()
    yield Bar(f"alarms over {WINDOWS} windows of its own test images", alarms, 4, 1, higher_is_better=False)
    turns = {
        "MNIST": np.asarray(read_part("mnist", "test", service.spec).images),
        "mirrored garments": own[:, :, ::-1],
        "garments upside down": own[:, ::-1],
    }
    for name, images in turns.items():
        seen = []
        for _ in range(TURNS):
            service.serve(some(own, size))
            seen.append(_until_noticed(service, some(images, MOST)))
        print(f"        {name}: noticed after {seen} images")
        yield Bar(f"images of {name} until it is noticed, the slowest of {TURNS}", max(seen), MOST, 200, False)


def _until_noticed(service: Service, images: np.ndarray) -> int:
    """More than all of them where it is not noticed at all."""
    for at in range(0, len(images), STEP):
        service.serve(images[at : at + STEP])
        if service.drifted():
            return at + STEP
    return len(images) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist", help="of those in models/")
    given = parser.parse_args()
    with serving() as client:
        for bar in measure(Service(client, given.model)):
            print(bar.line(), flush=True)


if __name__ == "__main__":
    main()
