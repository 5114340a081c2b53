"""A loaded bundle: its graphs, its preprocessing and its scoring, usable without a server."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from app.bundle import regions, scoring, tiles
from app.bundle.decode import decode_if_quick
from app.bundle.drift import DriftReference
from app.bundle.encode import enlarged, enlarged_by
from app.bundle.header import PIXELS_CEILING
from app.bundle.index import Index
from app.bundle.latent_map import LatentMap
from app.bundle.manifest import ANOMALY_MAP, MAP_STEP, PATCH_DISTANCE, Manifest
from app.bundle.preprocess import preprocess, preprocess_if_quick
from app.bundle.regions import Region, Size
from app.bundle.session import Session
from app.bundle.sets import PredictionSets
from app.errors import OperationUnavailable, PartMissing

CARD_FILE, REPORT_FILE = "card.md", "report.html"
PICTURE_SIZE = "picture_size"  # (N, 2) width and height at which pictures were cut, beside the outputs of their tiles
_PIXELS_AT_A_TIME = 1 << 18  # of tiles that run together: more take memory, and are no faster
_PLACES_AT_A_TIME = 2048  # whose distances from every remembered patch are computed: 16 MB for 2,000 patches
_NEEDS = {  # operation → the part that it needs, as messages name it
    "classify": "head",
    "reconstruct": "decoder",
    "anomaly": "anomaly calibration",
    "decode": "decoder",
    "generate": "variational code",
    "explain": "linear head on feature maps",
    "regions": "memory of patches with a threshold for places",
    "sets": "labelled calibration images",
    "similar": "index of images",
}
_DOES = {"sets": "give prediction sets"}  # operation → the verb, where its name is none


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
    sets: PredictionSets | None
    documents: Mapping[str, bytes]  # card.md and report.html, where the bundle has them
    index: Index | None = None

    def preprocess(self, data: bytes, max_pixels: int = PIXELS_CEILING) -> np.ndarray:
        """One encoded file → (H, W, C) uint8; of a bundle that cuts tiles, of the picture's own size, scaled."""
        return preprocess(data, self.manifest.input, max_pixels)

    def golden_input(self, data: bytes) -> np.ndarray:
        """One encoded file → (H, W, C) uint8 of the encoder's size: the picture, or the first of its tiles."""
        picture = self.preprocess(data)
        return next(tiles.cut(picture, self.grid(picture), 1))[0] if self.tiled else picture

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
        return scoring.classify(logits, self.manifest.classifier)

    def anomaly(self, images: np.ndarray) -> list[scoring.AnomalyScore]:
        if self.scorer is None:
            raise self._lacks(_NEEDS["anomaly"], "anomaly")
        if self.tiled:
            found = [self.measure_picture(picture)[PATCH_DISTANCE] for picture in images]
            return self.scorer.score({scoring.PATCHES: np.concatenate(found)}, None)
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

    # --- tiles: pictures of any size --------------------------------------------------------------------------------

    @cached_property
    def tiled(self) -> bool:
        """Whether pictures are cut into tiles: `encode` and `measure_patches` then take these."""
        return self.manifest.input.tiles is not None

    @property
    def tiles_at_once(self) -> int:
        height, width, _ = self.manifest.input.shape
        return max(1, _PIXELS_AT_A_TIME // (height * width))

    def grid(self, picture: np.ndarray) -> tiles.Grid:
        """Of a picture as `preprocess` gives it."""
        return tiles.grid_of(picture.shape[1], picture.shape[0], self.manifest.input)

    def measure_picture(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        """(h, w, C) uint8 → what `join` gives, some tiles at a time."""
        grid, parts = self.grid(picture), []
        for some in tiles.cut(picture, grid, self.tiles_at_once):
            encoded = self.encode(some, patches=self.patches is not None)
            vectors = {tensor.name: encoded[tensor.name] for tensor in self.manifest.graphs.encoded}
            parts.append(vectors if self.patches is None else vectors | self.measure_patches(encoded))
        return self.join(parts, grid)

    def join(self, parts: Sequence[Mapping[str, np.ndarray]], grid: tiles.Grid) -> dict[str, np.ndarray]:
        """Outputs of a picture's tiles, in their order → those of the picture, (1, …) each.

        Vectors are averaged. `anomaly_map`, if it is there, is stitched: (1,) objects, as maps of several pictures
        have shapes of their own. `patch_distance` is that of the whole map.
        """
        spec = self.manifest.input
        assert spec.tiles is not None
        joined = {PICTURE_SIZE: np.array([[grid.width, grid.height]])}
        for tensor in self.manifest.graphs.encoded:
            if tensor.name in parts[0]:
                rows = np.concatenate([part[tensor.name] for part in parts])
                joined[tensor.name] = rows.mean(axis=0, keepdims=True)
        if ANOMALY_MAP in parts[0]:
            maps = np.concatenate([part[ANOMALY_MAP] for part in parts])
            stitched = tiles.stitch(maps, grid)
            joined[ANOMALY_MAP] = np.empty(1, object)
            joined[ANOMALY_MAP][0] = stitched
            distance = tiles.distance_of(stitched, maps.shape[1], spec.tiles.largest)
            joined[PATCH_DISTANCE] = np.array([[distance]], np.float32)
        return joined

    def place_stitched(self, map_: np.ndarray, width: int, height: int) -> np.ndarray:
        """The map of a picture that was cut at this size → (h, w), as `place`: a pixel for each MAP_STEP pixels."""
        graph = self.manifest.graphs.patches
        assert graph is not None
        pitch = self.manifest.input.height // graph.outputs[0].shape[1]
        return enlarged_by(map_, pitch // MAP_STEP)[: -(-height // MAP_STEP), : -(-width // MAP_STEP)]

    def regions(
        self, maps: np.ndarray, sizes: Sequence[Size], false_alarm_rate: float | None = None
    ) -> list[list[Region]]:
        """Of anomaly maps (N, rows, columns), in the pixels of pictures of these sizes. Raises ValueError for a rate
        that is too small for the number of sound images. Of stitched maps they are (N,) objects."""
        if self.peaks is None or self.manifest.anomaly is None:
            raise self._lacks(_NEEDS["regions"], "regions")
        threshold = scoring.threshold_at(self.peaks, false_alarm_rate or self.manifest.anomaly.false_alarm_rate)
        placed: Iterable[np.ndarray] = (
            (
                self.place_stitched(map_, *tiles.scaled_size(*size, self.manifest.input))
                for map_, size in zip(maps, sizes, strict=True)
            )
            if self.tiled
            else self.place(maps)
        )
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
        if self.tiled and len(images) > self.tiles_at_once:
            step = self.tiles_at_once
            parts = [self.run_all(images[start : start + step]) for start in range(0, len(images), step)]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
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
            "sets": self.sets is not None,
            "similar": self.index is not None,
        }
        return [operation for operation, there in available.items() if there]

    def require(self, operation: str) -> None:
        """Raises OperationUnavailable if the bundle lacks what the operation needs."""
        if operation not in self.operations:
            if operation == "sets" and self.manifest.classifier and self.manifest.classifier.thresholds is not None:
                raise OperationUnavailable(
                    f"model {self.name}@{self.version} has independent labels, of which an image may have several: "
                    "prediction sets are of models whose images have one label each"
                )
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
            f"model {self.name}@{self.version} has no {part}, so it cannot {_DOES.get(operation, operation)}; it can: "
            + ", ".join(self.operations)
        )
