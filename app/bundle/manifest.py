"""The manifest: all that serving knows of a bundle, validated before anything in it is used.

Name and version come from the folder, never from the file, so a bundle is renamed by moving its folder.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from app.errors import ChecksumMismatch, ManifestInvalid, SchemaTooNew, UnsafePath

# 2 added input.padding and provenance.weights, 3 graphs.patches and the distance that it gives, 4 input.tiles,
# 5 classifier.thresholds, 6 index and codes.
SCHEMA_VERSION = 6
MANIFEST_FILE = "manifest.json"
PATCH_FEATURES = "patch_features"  # the encoder's output that graphs.patches reads
ANOMALY_MAP, PATCH_DISTANCE = "anomaly_map", "patch_distance"  # outputs of graphs.patches

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TILE_STEP = 32  # pixels: tiles begin at multiples of it, which the strides of networks divide
MAP_STEP = 4  # pixels of a scaled picture for one of the map that heatmaps show and regions are cut from
Colour = tuple[Annotated[int, Field(ge=0, le=255)], ...]  # a level for each channel


class Strict(BaseModel):
    """Absent parts are null. A field has a default only where an older schema lacks it, and it means what that did."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Tiles(Strict):
    """A picture of any size is scaled and cut into tiles, of which the encoder takes each; their maps are stitched."""

    overlap: Annotated[int, Field(ge=0)]  # pixels that neighbouring tiles share, at least
    scale: Annotated[float, Field(gt=0, le=1)]  # of the picture's own resolution
    # Share of a tile's places: so many of the largest values of a picture's whole map have its distance as their mean.
    largest: Annotated[float, Field(gt=0, le=1)]


class InputSpec(Strict):
    """How a file's bytes become the encoder's (H, W, C) uint8. A field with one choice documents what is done."""

    height: PositiveInt
    width: PositiveInt
    channels: Literal[1, 3]
    resize: Literal["stretch", "pad", "crop"]  # pad and crop keep the aspect ratio and centre the image
    filter: Literal["box", "bilinear", "bicubic", "lanczos"]  # each averages over the source area when it shrinks
    background: Literal["black", "white"]  # behind alpha
    # What fills the bars of pad: the background, the image's outermost pixels repeated, or a colour.
    padding: Literal["background", "edge"] | Colour = "background"
    orientation: Literal["apply"]  # the EXIF orientation is applied
    sixteen_bit: Literal["high_byte"]  # of each sample, grey or colour
    palette: Literal["expand"]
    cmyk: Literal["convert"]  # to RGB by Pillow's formula; colour profiles are ignored
    animation: Literal["first_frame"]
    jpeg: Literal["reduced"]  # decoded at the smallest DCT scale of at least twice the needed size; with tiles, whole
    tiles: Tiles | None = None  # with them, height and width are a tile's, and `resize` and `padding` say nothing

    @model_validator(mode="after")
    def padding_has_the_channels(self) -> "InputSpec":
        if isinstance(self.padding, tuple) and len(self.padding) != self.channels:
            raise ValueError(f"input.padding: {len(self.padding)} levels for {self.channels} channels")
        return self

    @model_validator(mode="after")
    def tiles_fit_together(self) -> "InputSpec":
        if self.tiles is None:
            return self
        if self.height != self.width or self.height % TILE_STEP:
            raise ValueError(
                f"input.tiles: {self.height} × {self.width}: a tile is a square, and its side a multiple of {TILE_STEP}"
            )
        if self.tiles.overlap % TILE_STEP or self.tiles.overlap >= self.height:
            raise ValueError(
                f"input.tiles.overlap: {self.tiles.overlap}: must be a multiple of {TILE_STEP}, and below {self.height}"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class Tensor(Strict):
    """The first axis is -1, the batch."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: Annotated[tuple[int, ...], Field(min_length=2)]

    @property
    def is_vector(self) -> bool:
        return len(self.shape) == 2


class Graph(Strict):
    file: str
    input: Tensor
    outputs: Annotated[tuple[Tensor, ...], Field(min_length=1)]


class Graphs(Strict):
    """`image` → encoder → `embedding` (and `features`); each other graph names which of the two is its input.

    `explain` returns (N, labels, rows, columns); the sum over rows and columns is the head's logits without the bias.
    It may read a map instead, (N, channels, rows, columns), whose average over places is the embedding: an output of
    the encoder that is computed for it alone. `patches` reads such a map, too, and returns `anomaly_map` (N, rows,
    columns), the distance of each place from the remembered patches of normal images, or by how much a network marks it
    as a defect, and `patch_distance` (N, 1).
    """

    encoder: Graph
    decoder: Graph | None
    head: Graph | None
    explain: Graph | None
    patches: Graph | None = None

    @property
    def encoded(self) -> tuple[Tensor, ...]:
        """The encoder's outputs (N, D): what every request computes."""
        return tuple(tensor for tensor in self.encoder.outputs if tensor.is_vector)

    def tensors(self) -> list[str]:
        """The names of all graph outputs that golden pairs hold: a map is left out, as `explain` adds it up."""
        others = [graph for part, graph in self if part != "encoder" and graph is not None]
        return [tensor.name for tensor in (*self.encoded, *(each for graph in others for each in graph.outputs))]


class Classifier(Strict):
    labels: Annotated[tuple[str, ...], Field(min_length=2)]  # the data set's own names in its own order
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)]  # logits are divided by it before softmax or sigmoid
    # With them the labels are independent: probabilities are sigmoids of the logits, and an image has each label whose
    # probability reaches its threshold. Without, it has one label, and probabilities are a softmax.
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None

    @field_validator("labels")
    @classmethod
    def distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < len(labels):
            raise ValueError("classifier.labels: two labels are equal")
        return labels

    @model_validator(mode="after")
    def each_label_has_a_threshold(self) -> "Classifier":
        if self.thresholds is not None and len(self.thresholds) != len(self.labels):
            raise ValueError(f"classifier.thresholds: {len(self.thresholds)} for {len(self.labels)} labels")
        return self


class Distance(Strict):
    """One measure of the distance between an image and the training normals.

    reconstruction  mean over pixels and channels of (reconstruction - image / 255)²; takes `pixels`
    patches         `patch_distance` of the graph `patches`; takes `patches`
    mahalanobis     √‖z / spread‖²
    residual        √(‖x‖² - ‖z‖²), the part outside the normals' principal directions
    neighbours      mean distance between z and its nearest references
    local           the same, each distance divided by the root of the reference's reach: its mean distance from the
                    references nearest to it

    x = (tensor - mean) · weight and z = x · basis, with the reference file's arrays for the tensor `takes`.
    `embedding` and `features` are encoder outputs; `thumbnail` is the image shrunk by app.bundle.scoring.thumbnails.
    """

    measure: Literal["reconstruction", "mahalanobis", "residual", "neighbours", "local", "patches"]
    takes: Literal["pixels", "thumbnail", "embedding", "features", "patches"]
    mean: float  # over training normals that were not used to fit the arrays; so is std
    std: Annotated[float, Field(ge=1e-12)]

    @property
    def name(self) -> str:
        return self.measure if self.takes in ("pixels", "patches") else f"{self.takes}.{self.measure}"


class Anomaly(Strict):
    """score = sum over the distances of (distance - mean) / std. A higher score is more anomalous."""

    distances: Annotated[tuple[Distance, ...], Field(min_length=1)]
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    threshold: float  # the score above which p ≤ false_alarm_rate
    calibrated_on: PositiveInt  # number of held-out normals; the reference file has their sorted scores
    quantiles: dict[str, float]  # of those scores, for people to read


class Golden(Strict):
    """Drawn images with their pixels and outputs at export; every load runs them again."""

    file: str
    images: PositiveInt
    pixels: Annotated[int, Field(ge=0, le=1)]  # grey levels by which a decoded pixel may differ
    # Tensor → by how much a value may differ, as a share of max(1, the tensor's largest magnitude).
    outputs: dict[str, Annotated[float, Field(gt=0, le=0.05)]]


class Metric(Strict):
    name: str
    value: float
    images: PositiveInt
    how: str


class Weights(Strict):
    """The published weights that a network began with."""

    backbone: str
    file: str
    sha256: Sha256
    publisher: str | None  # null for a file that was given by path or URL; so is the licence
    licence: str | None


class Provenance(Strict):
    recipe: str
    seed: int
    source: str
    target: str
    data: dict[str, Sha256]  # array → fingerprint, for every array that training read
    created: str
    commit: str
    versions: dict[str, str]
    opset: PositiveInt
    weights: Weights | None = None


class Manifest(Strict):
    schema_version: int
    title: str
    input: InputSpec
    latent_size: PositiveInt
    variational: bool  # embeddings are about N(0, I), so samples of N(0, I) can be decoded
    # The shapes that `features` concatenates: (channels, rows, columns), or (numbers,).
    feature_maps: tuple[tuple[PositiveInt, ...], ...]
    graphs: Graphs
    classifier: Classifier | None
    anomaly: Anomaly | None
    reference: str | None
    golden: Golden
    metrics: tuple[Metric, ...]
    provenance: Provenance
    files: dict[str, Sha256]
    index: str | None = None  # of example images: see app/bundle/index.py
    codes: str | None = None  # of images that heads are fitted and judged by again: see training/score/codes.py
    seal: Sha256  # of all other fields: a changed temperature or threshold is detected like a changed weight

    @model_validator(mode="after")
    def files_are_listed(self) -> "Manifest":
        for field, file in self.named_files():
            if file not in self.files:
                raise ValueError(f"{field}: {file!r} is not in files")
        return self

    @model_validator(mode="after")
    def anomaly_can_be_computed(self) -> "Manifest":
        if self.anomaly and self.reference is None:
            raise ValueError("anomaly: needs reference")
        tensors = {"thumbnail"} | {tensor.name for tensor in self.graphs.encoded}
        for distance in self.anomaly.distances if self.anomaly else ():
            if (distance.measure == "reconstruction") != (distance.takes == "pixels"):
                raise ValueError("anomaly.distances: reconstruction takes pixels, and no other measure does")
            if (distance.measure == "patches") != (distance.takes == "patches"):
                raise ValueError("anomaly.distances: the measure patches takes patches, and no other measure does")
            if distance.takes == "pixels" and self.graphs.decoder is None:
                raise ValueError("anomaly.distances: reconstruction needs graphs.decoder")
            if distance.takes == "patches" and self.graphs.patches is None:
                raise ValueError("anomaly.distances: patches needs graphs.patches")
            if distance.takes not in ("pixels", "patches") and distance.takes not in tensors:
                raise ValueError(f"anomaly.distances.takes: the encoder has no output {distance.takes!r}")
        return self

    @model_validator(mode="after")
    def head_and_labels_agree(self) -> "Manifest":
        head, explain, classifier = self.graphs.head, self.graphs.explain, self.classifier
        if (head is None) != (classifier is None):
            raise ValueError("graphs.head and classifier: one is null and the other is not")
        if head and classifier and head.outputs[0].shape[-1] != len(classifier.labels):
            raise ValueError(
                f"classifier.labels: {len(classifier.labels)} labels for a head of {head.outputs[0].shape[-1]} outputs"
            )
        if explain and (head is None or explain.outputs[0].shape[1:-2] != head.outputs[0].shape[1:]):
            raise ValueError("graphs.explain: its output must be (N, labels, rows, columns), with the head's labels")
        return self

    @model_validator(mode="after")
    def graphs_agree(self) -> "Manifest":
        graphs = self.graphs
        if set(self.golden.outputs) != set(graphs.tensors()):
            raise ValueError("golden.outputs: differs from the outputs of the graphs")
        if graphs.encoder.input.shape != (-1, *self.input.shape):
            raise ValueError("graphs.encoder.input.shape: differs from input")
        tensors = {tensor.name: tensor for tensor in graphs.encoder.outputs}
        if tensors.get("embedding") is None or tensors["embedding"].shape != (-1, self.latent_size):
            raise ValueError("graphs.encoder.outputs: has no embedding of latent_size")
        joined = sum(math.prod(shape) for shape in self.feature_maps)
        if joined != (tensors["features"].shape[-1] if "features" in tensors else 0):
            raise ValueError("feature_maps: the shapes do not add up to the encoder's features")
        for part, graph in graphs:
            if part == "encoder" or graph is None:
                continue
            if tensors.get(graph.input.name) != graph.input:
                raise ValueError(f"graphs.{part}.input: is not an output of the encoder")
            if part not in ("explain", "patches") and not graph.input.is_vector:
                raise ValueError(f"graphs.{part}.input: only explain and patches read a map")
        if graphs.patches:
            given = [(tensor.name, len(tensor.shape)) for tensor in graphs.patches.outputs]
            if given != [(ANOMALY_MAP, 3), (PATCH_DISTANCE, 2)] or graphs.patches.outputs[1].shape[1] != 1:
                raise ValueError(
                    f"graphs.patches.outputs: must be {ANOMALY_MAP} (N, rows, columns) and {PATCH_DISTANCE} (N, 1)"
                )
        return self

    @model_validator(mode="after")
    def tiles_have_maps(self) -> "Manifest":
        if self.input.tiles is None:
            return self
        graphs = self.graphs
        if graphs.decoder or graphs.head or graphs.explain:
            raise ValueError("input.tiles: decoder, head and explain read one image, and a picture has many tiles")
        if any(distance.takes != "patches" for distance in (self.anomaly.distances if self.anomaly else ())):
            raise ValueError("input.tiles: anomaly.distances: a picture in tiles has the distance patches alone")
        if graphs.patches is not None:
            rows, columns = graphs.patches.outputs[0].shape[1:]
            pitch = self.input.height // rows
            if rows != columns or rows * pitch != self.input.height or TILE_STEP % pitch or pitch % MAP_STEP:
                raise ValueError(
                    f"input.tiles: {rows} × {columns} places on {self.input.height} pixels: a place must have "
                    f"{MAP_STEP}, {2 * MAP_STEP}, … {TILE_STEP} pixels"
                )
        return self

    def named_files(self) -> list[tuple[str, str]]:
        graphs = self.graphs
        named = [(f"graphs.{part}.file", graph.file) for part, graph in graphs if graph is not None]
        named.append(("golden.file", self.golden.file))
        optional = {"reference": self.reference, "index": self.index, "codes": self.codes}
        return [*named, *((field, file) for field, file in optional.items() if file is not None)]

    @classmethod
    def sealed(cls, **fields: Any) -> "Manifest":
        """From all fields but the schema's version, which is the newest, and the seal, which is computed here."""
        unsealed = cls(**fields, schema_version=SCHEMA_VERSION, seal="0" * 64)
        return unsealed.model_copy(update={"seal": seal_of(unsealed.model_dump(mode="json"))})

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: bytes, where: str) -> "Manifest":
        """`where` (name/version) begins every message."""
        file = f"{where}/{MANIFEST_FILE}"
        try:
            raw: Any = json.loads(text, object_pairs_hook=_refuse_duplicate_keys)
        except (ValueError, RecursionError) as error:
            raise ManifestInvalid(f"{file}: not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ManifestInvalid(f"{file}: must be a JSON object")
        schema = raw.get("schema_version")
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise SchemaTooNew(
                f"{file}: schema_version {schema} is newer than {SCHEMA_VERSION}, the newest that this Graft reads: "
                "upgrade Graft, or export the bundle again with this version of it"
            )
        if type(schema) is not int or not 1 <= schema <= SCHEMA_VERSION:
            raise ManifestInvalid(f"{file}: field schema_version: {schema!r} is not a schema version of Graft")
        for field, name in _file_names(raw):
            refuse_unsafe(name, f"{file}: field {field}")
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            raise ManifestInvalid(f"{file}: " + "; ".join(map(_sentence, error.errors()))) from None
        if manifest.seal != seal_of(raw):
            raise ChecksumMismatch(
                f"{file}: field seal: the manifest was changed or damaged after export; copy the bundle again"
            )
        return manifest


def seal_of(raw: dict[str, Any]) -> str:
    """SHA-256 of the manifest without its seal, as JSON with sorted keys and no white space."""
    unsealed = {name: value for name, value in raw.items() if name != "seal"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("the same key twice in one object")
    return dict(pairs)


def _file_names(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, file name) for every file that the manifest names; the manifest need not be valid yet."""
    graphs, golden, files = (raw.get(field) for field in ("graphs", "golden", "files"))
    for part, graph in graphs.items() if isinstance(graphs, dict) else ():
        if isinstance(graph, dict) and isinstance(graph.get("file"), str):
            yield f"graphs.{part}.file", graph["file"]
    if isinstance(golden, dict) and isinstance(golden.get("file"), str):
        yield "golden.file", golden["file"]
    for field in ("reference", "index", "codes"):
        if isinstance(raw.get(field), str):
            yield field, raw[field]
    yield from (("files", name) for name in (files if isinstance(files, dict) else ()))


def refuse_unsafe(name: str, where: str) -> None:
    """Raises UnsafePath unless `name` stays in the bundle's own folder, on every operating system."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or path.root:
            raise UnsafePath(f"{where}: {name!r} is an absolute path")
        if ".." in path.parts:
            raise UnsafePath(f"{where}: {name!r} climbs out of the bundle")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == MANIFEST_FILE:
        raise UnsafePath(f"{where}: {name!r} is not a plain file name")


def _sentence(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            return f"unknown field {field}"
        case "missing":
            return f"missing field {field}"
        case "value_error":
            return str(error["ctx"]["error"])
    return f"field {field}: {error['msg']}"
