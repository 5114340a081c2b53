"""A loaded bundle: its graphs, its preprocessing and its scoring, usable without a server."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from app.bundle import regions, scoring
from app.bundle.decode import decode_if_quick
from app.bundle.drift import DriftReference
from app.bundle.encode import enlarged
from app.bundle.header import PIXELS_CEILING
from app.bundle.latent_map import LatentMap
from app.bundle.manifest import PATCH_DISTANCE, Manifest
from app.bundle.preprocess import preprocess, preprocess_if_quick
from app.bundle.regions import Region, Size
from app.bundle.session import Session
from app.errors import OperationUnavailable, PartMissing

CARD_FILE, REPORT_FILE = "card.md", "report.html"
_PLACES_AT_A_TIME = 2048  # whose distances from every remembered patch are computed: 16 MB for 2,000 patches
_NEEDS = {  # operation → the part that it needs, as messages name it
    "classify": "head",
    "reconstruct": "decoder",
    "anomaly": "anomaly calibration",
    "decode": "decoder",
    "generate": "variational code",
    "explain": "linear head on feature maps",
    "regions": "memory of patches with a threshold for places",
}


@dataclass(frozen=True)
class Bundle:
    """A bundle that `load` has verified. N is the batch size in every shape."""

    name: str
    version: int
    digest: str  # SHA-256 of the manifest, which lists those of all files; embeddings compare only within one digest
    manifest: Manifest
    encoder: Session
    decoder: Session | None
    head: Session | None
    explainer: Session | None
    patches: Session | None
    scorer: scoring.AnomalyScorer | None
    peaks: np.ndarray | None  # the largest values of sound images' anomaly maps, ascending
    drift: DriftReference | None  # older bundles have none
    map: LatentMap | None
    documents: Mapping[str, bytes]  # card.md and report.html, where the bundle has them

    def preprocess(self, data: bytes, max_pixels: int = PIXELS_CEILING) -> np.ndarray:
        """One encoded file → (H, W, C) uint8."""
        return preprocess(data, self.manifest.input, max_pixels)

    def preprocess_if_quick(self, data: bytes, max_pixels: int = PIXELS_CEILING) -> np.ndarray | None:
        """As `preprocess`; None where it could take longer than microseconds."""
        return preprocess_if_quick(data, self.manifest.input, max_pixels)

    def pixels_if_quick(self, data: bytes, max_pixels: int = PIXELS_CEILING) -> np.ndarray | None:
        """As `preprocess_if_quick`; None also where the image needs more than decoding."""
        pixels = decode_if_quick(data, max_pixels)
        return pixels if pixels is not None and pixels.shape == self.manifest.input.shape else None

    def encode(self, images: np.ndarray, explain: bool = False, patches: bool = False) -> dict[str, np.ndarray]:
        """(N, H, W, C) uint8 → the encoder's outputs: `embedding` (N, D) and, in some bundles, `features`.

        With `explain` also the map that `explain` reads, if it reads one; with `patches` the map that `patches` reads.
        """
        return self.encoder.run(images, self._outputs[explain, patches])

    @cached_property
    def _outputs(self) -> dict[tuple[bool, bool], list[str]]:
        """(whether `explain` reads them, whether `patches` does) → the encoder's outputs that are computed."""
        graphs = self.manifest.graphs
        vectors = [tensor.name for tensor in graphs.encoded]
        outputs = {}
        for explain, patches in product((False, True), repeat=2):
            readers = [graphs.explain] * explain + [graphs.patches] * patches
            maps = [graph.input.name for graph in readers if graph is not None]
            outputs[explain, patches] = list(dict.fromkeys([*vectors, *maps]))
        return outputs

    def reconstruct(self, encoded: dict[str, np.ndarray]) -> np.ndarray:
        """The encoder's outputs → (N, H, W, C) float32 in 0…1."""
        graph = self.manifest.graphs.decoder
        if self.decoder is None or graph is None:
            raise self._lacks(_NEEDS["reconstruct"], "reconstruct")
        return self.decoder.run(encoded[graph.input.name])[graph.outputs[0].name]

    def logits(self, encoded: dict[str, np.ndarray]) -> np.ndarray:
        """The encoder's outputs → (N, K) float32."""
        graph = self.manifest.graphs.head
        if self.head is None or graph is None:
            raise self._lacks(_NEEDS["classify"], "classify")
        return self.head.run(encoded[graph.input.name])[graph.outputs[0].name]

    def classify(self, images: np.ndarray) -> list[scoring.Classification]:
        logits = self.logits(self.encode(images))
        assert self.manifest.classifier is not None  # the manifest has one exactly when there is a head
        return scoring.classify(logits, self.manifest.classifier.labels, self.manifest.classifier.temperature)

    def anomaly(self, images: np.ndarray) -> list[scoring.AnomalyScore]:
        if self.scorer is None:
            raise self._lacks(_NEEDS["anomaly"], "anomaly")
        encoded = self.encode(images, patches=self.scorer.reads_patches)
        errors = None
        if self.scorer.reconstructs:
            errors = scoring.reconstruction_errors(images, self.reconstruct(encoded))
        return self.scorer.score(self.taken(images, encoded, self.scorer.tensors), errors)

    def taken(
        self, images: np.ndarray, encoded: dict[str, np.ndarray], tensors: Collection[str]
    ) -> dict[str, np.ndarray]:
        """The named input tensors of the anomaly distances, (N, D) each.

        `encoded` may hold what `measure_patches` gave for these images; it runs here where it is needed and missing.
        """
        taken = {name: values for name, values in encoded.items() if name in tensors}
        if "thumbnail" in tensors:
            taken["thumbnail"] = scoring.thumbnails(images)
        if scoring.PATCHES in tensors:
            found = encoded if PATCH_DISTANCE in encoded else self.measure_patches(encoded)
            taken[scoring.PATCHES] = found[PATCH_DISTANCE]
        return taken

    def measure_patches(self, encoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The encoder's outputs → `anomaly_map` (N, rows, columns) and `patch_distance` (N, 1)."""
        graph = self.manifest.graphs.patches
        if self.patches is None or graph is None:
            raise self._lacks("memory of patches", "anomaly")
        maps = encoded[graph.input.name]
        # All distances of a part are in memory at a time.
        step = max(1, _PLACES_AT_A_TIME // math.prod(maps.shape[2:]))
        parts = [self.patches.run(maps[start : start + step]) for start in range(0, len(maps), step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def place(self, maps: np.ndarray) -> np.ndarray:
        """Anomaly maps (N, rows, columns) → (N, H, W), as heatmaps show them and regions are cut from them."""
        height, width, _ = self.manifest.input.shape
        return enlarged(maps, height, width)

    def regions(
        self, maps: np.ndarray, sizes: Sequence[Size], false_alarm_rate: float | None = None
    ) -> list[list[Region]]:
        """Of anomaly maps (N, rows, columns), in the pixels of pictures of these sizes. Raises ValueError for a rate
        that is too small for the number of sound images."""
        if self.peaks is None or self.manifest.anomaly is None:
            raise self._lacks(_NEEDS["regions"], "regions")
        threshold = scoring.threshold_at(self.peaks, false_alarm_rate or self.manifest.anomaly.false_alarm_rate)
        placed = self.place(maps)
        pairs = zip(placed, sizes, strict=True)
        return [regions.find(each, threshold, self.peaks, spec=self.manifest.input, size=size) for each, size in pairs]

    def explain(self, encoded: dict[str, np.ndarray]) -> np.ndarray:
        """The encoder's outputs → (N, labels, rows, columns): each cell's share of each logit, without the bias."""
        graph = self.manifest.graphs.explain
        if self.explainer is None or graph is None:
            raise self._lacks(_NEEDS["explain"], "explain")
        return self.explainer.run(encoded[graph.input.name])[graph.outputs[0].name]

    @property
    def white(self) -> float:
        """The distance from which on a place of `anomaly_map` is drawn white: few normal images reach it."""
        distances = self.manifest.anomaly.distances if self.manifest.anomaly else ()
        return max((each.mean + 3 * each.std for each in distances if each.takes == scoring.PATCHES), default=0.0)

    def run_all(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every output of every graph that golden pairs hold, by name."""
        outputs = self.encode(images, explain=True, patches=True)
        graphs = self.manifest.graphs
        for session, graph in (
            (self.decoder, graphs.decoder),
            (self.head, graphs.head),
            (self.explainer, graphs.explain),
        ):
            if session is not None and graph is not None:
                outputs = outputs | session.run(outputs[graph.input.name])
        if self.patches is not None:
            outputs = outputs | self.measure_patches(outputs)
        return {name: outputs[name] for name in graphs.tensors()}

    @cached_property
    def operations(self) -> Sequence[str]:
        available = {
            "classify": self.head is not None,
            "encode": True,
            "reconstruct": self.decoder is not None,
            "anomaly": self.scorer is not None,
            "predict": True,
            "decode": self.decoder is not None,
            "generate": self.decoder is not None and self.manifest.variational,
            "explain": self.explainer is not None,
            "regions": self.peaks is not None,
        }
        return [operation for operation, there in available.items() if there]

    def require(self, operation: str) -> None:
        """Raises OperationUnavailable if the bundle lacks what the operation needs."""
        if operation not in self.operations:
            raise self._lacks(_NEEDS[operation], operation)

    @property
    def parts(self) -> list[str]:
        """The optional parts that have a route of their own."""
        available = {
            "card": CARD_FILE in self.documents,
            "report": REPORT_FILE in self.documents,
            "map": self.map is not None,
            "drift": self.drift is not None,
        }
        return [part for part, there in available.items() if there]

    def require_part(self, part: str) -> None:
        if part not in self.parts:
            raise PartMissing(
                f"model {self.name}@{self.version} has no {part}; it has: {', '.join(self.parts) or 'none'}"
            )

    def _lacks(self, part: str, operation: str) -> OperationUnavailable:
        return OperationUnavailable(
            f"model {self.name}@{self.version} has no {part}, so it cannot {operation}; it can: "
            + ", ".join(self.operations)
        )
