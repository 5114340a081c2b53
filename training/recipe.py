"""Recipes: named experiments. A TOML file lists what differs from the defaults here, each line with its reason."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from app.bundle import InputSpec
from app.bundle.scoring import NEEDS
from training.errors import TrainingError

FOLDER = Path(__file__).parent / "recipes"
DISTANCES = ("reconstruction", "embedding.mahalanobis")  # of the anomaly score, unless a recipe names others


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Part):
    kind: Literal["conv", "conv-seed", "dense", "resnet18", "resnet50"] = "conv"
    width: PositiveInt = 32  # conv: channels of the first stage, doubled by each; resnet: of the decoder
    depth: PositiveInt = 1  # conv: residual blocks in each stage
    most: PositiveInt = 256  # conv and resnet's decoder: channels of no stage exceed it
    stem: NonNegativeInt = 0  # conv: channels of a convolution at the full size, before the first halving
    hidden: PositiveInt = 512  # dense: between pixels and code
    shortcuts: bool = True  # conv: residual blocks; without, a plain convolution for each
    latent: PositiveInt = 64  # conv and dense; the others' codes have a size of their own
    grid: PositiveInt = 4  # cells of a side to which the stages' maps are pooled, for a head that reads them
    maxima: bool = False  # of each cell the largest value, beside the average
    variational: bool = False  # conv and dense
    weights: str | None = None  # resnet: a torchvision state dict, by path or URL

    @model_validator(mode="after")
    def fits(self) -> "Network":
        if self.variational and self.kind not in ("conv", "dense"):
            raise ValueError(f"variational is for conv and dense, not for {self.kind}")
        if self.weights is not None and not self.kind.startswith("resnet"):
            raise ValueError(f"weights are for resnet18 and resnet50, not for {self.kind}")
        return self


class Objective(_Part):
    """reconstruction + contrast + corruption + penalty, each absent at zero."""

    loss: Literal["bce", "mse"] = "bce"
    reconstruction: Annotated[float, Field(ge=0)] = 1  # weight of the loss of the image that is drawn back
    contrast: Annotated[float, Field(ge=0)] = 0  # weight of telling by their codes which two views are of one image
    temperature: Annotated[float, Field(gt=0)] = 0.2  # of contrast: the lower, the more the nearest others count
    noise: Annotated[float, Field(ge=0)] = 0  # standard deviation of what is added to pixels in 0…1
    mask: Annotated[float, Field(ge=0, lt=1)] = 0  # share of 4×4 patches that are blacked out
    l1: Annotated[float, Field(ge=0)] = 0  # weight of the code's mean magnitude
    kl: Annotated[float, Field(ge=0)] = 0  # weight of the divergence of units' mean activity from `activity`
    activity: Annotated[float, Field(gt=0, lt=1)] = 0.05
    beta: Annotated[float, Field(ge=0)] = 1  # weight of a variational code's divergence from the prior
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.2  # share of the steps over which beta rises from nothing

    @model_validator(mode="after")
    def asks_for_something(self) -> "Objective":
        if not self.reconstruction and not self.contrast:
            raise ValueError("reconstruction and contrast are both zero: nothing is left to learn")
        return self


class Augment(_Part):
    """What may happen to an image on its way into training, drawn anew each time; each absent by default."""

    # Left and right exchanged; any of left, right, top and bottom; or, of squares, rows and columns as well.
    flip: Literal["none", "across", "both", "any"] = "none"
    crop: Annotated[float, Field(gt=0, le=1)] = 1  # a part of at least this share of the image is enlarged to its size
    shift: NonNegativeInt = 0  # pixels, each way, at most; what moves in is black
    turn: Annotated[float, Field(ge=0, le=180)] = 0  # degrees, each way, at most
    scale: Annotated[float, Field(ge=0, lt=1)] = 0  # larger or smaller by this share, at most
    light: Annotated[float, Field(ge=0, le=1)] = 0  # contrast changes by this share at most, brightness by half of it
    erase: Annotated[float, Field(ge=0, le=1)] = 0  # how often a rectangle is filled with noise


class Stage(_Part):
    """One run of the training loop."""

    epochs: PositiveInt = 10
    batch: PositiveInt = 128
    rate: Annotated[float, Field(gt=0)] = 1e-3
    optimiser: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd, Nesterov's
    weight_decay: Annotated[float, Field(ge=0)] = 0
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    clip: Annotated[float, Field(gt=0)] | None = None  # the gradient's norm
    augment: Augment = Augment()  # of stages in which the encoder learns
    patience: PositiveInt | None = None  # epochs without a better validation loss before the stage ends


class Pretrain(Stage):
    epochs: NonNegativeInt = 10  # none: network.weights are all the pretraining there is


class Transfer(Stage):
    """How what was learnt comes to the target.

    decoder        no labels: encoder frozen, the decoder alone is fine-tuned (as it is, at the end, in every mode)
    head           encoder frozen, a linear head learns the labels
    gradual        head first, then the encoder's blocks from the top down, each slower than the one above
    full           head and the whole encoder
    multitask      labels and reconstruction together
    episodic       the encoder learns to tell classes by a few images of each, then a head: a base to graft
    scratch        as full, without pretraining: what transfer has to beat
    random-frozen  as head, without pretraining: what features have to beat

    The target's images have no labels, or theirs are looked at in the test alone; no pretraining:

    dann           labels of the source, and a classifier of domains that is to be left nothing to tell them by
    mmd            the same, and the maximum mean discrepancy of the domains as a penalty
    source-only    labels of the source alone: what these two have to beat
    """

    mode: Literal[
        "decoder",
        "head",
        "gradual",
        "full",
        "multitask",
        "episodic",
        "scratch",
        "random-frozen",
        "dann",
        "mmd",
        "source-only",
    ] = "head"
    reads: Literal["embedding", "features"] = "features"  # the code, or the pooled maps of every stage
    class_weights: bool = False  # each class counts alike in the loss, however many images it has
    slower_below: Annotated[float, Field(gt=0, le=1)] = 0.5  # gradual: a stage's rate, of that of the stage above
    reconstruction: Annotated[float, Field(ge=0)] = 1  # multitask: weight of the reconstruction loss
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0  # share of a label's weight that all classes have alike
    hidden: NonNegativeInt = 0  # units of a layer between what the head reads and the labels; 0 is a linear head
    thaw: NonNegativeInt = 0  # gradual: so many blocks from the top down are freed, the rest stay frozen; 0 is all
    way: Annotated[int, Field(ge=2)] = 10  # episodic: classes of an episode, or as many as there are
    shots: PositiveInt = 5  # episodic: images of each class that its prototype is the mean of
    queries: PositiveInt = 10  # episodic: images of each class that are to be told
    symmetries: bool = False  # episodic: turned and mirrored, a class makes seven more
    adaptation: Annotated[float, Field(ge=0)] = 1  # dann, mmd: weight of the domains' likeness, once it has risen

    @property
    def pretrains(self) -> bool:
        return self.mode not in ("scratch", "random-frozen") and not self.adapts

    @property
    def adapts(self) -> bool:
        """Whether the labels are the source's."""
        return self.mode in ("dann", "mmd", "source-only")

    @model_validator(mode="after")
    def augments_what_learns(self) -> "Transfer":
        if self.augment != Augment() and self.mode in ("decoder", "head", "random-frozen"):
            raise ValueError(f"transfer.augment: with mode {self.mode} the encoder is frozen, and runs once per image")
        return self


class Split(_Part):
    """Seeded, by class. The test part takes no part in any choice."""

    test: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share kept back where the data set has no test part of its own
    validation: PositiveInt = 5000  # of the training part, at most; and no more than a tenth of it
    calibration: PositiveInt = 5000  # the same; and no more than a fifth
    groups: str | None = None  # images that belong together: a CSV of file,group, or a regular expression on the path


def tensors(distances: Sequence[str]) -> set[str]:
    """Those that the distances take; the reconstruction's errors are none."""
    return {takes for takes, _ in map(parsed_distance, distances)} - {"pixels"}


def parsed_distance(distance: str) -> tuple[str, str]:
    """reconstruction → (pixels, reconstruction); features.residual → (features, residual)."""
    if distance == "reconstruction":
        return "pixels", distance
    tensor, _, measure = distance.partition(".")
    if tensor not in ("thumbnail", "embedding", "features") or measure not in NEEDS:
        raise ValueError(
            f"{distance}: reconstruction, or thumbnail, embedding or features with one of {', '.join(NEEDS)}, "
            "as in features.residual"
        )
    return tensor, measure


class Score(_Part):
    """The anomaly score: a sum of distances, each in its own standard deviations among normals."""

    distances: Annotated[tuple[str, ...], Field(min_length=1)] = DISTANCES

    @field_validator("distances")
    @classmethod
    def are_known(cls, distances: tuple[str, ...]) -> tuple[str, ...]:
        tensors(distances)  # a ValueError names the one that is not
        return distances


class Export(_Part):
    int8: bool = False  # graphs of eight-bit integers, where they hold their accuracy
    most_lost: Annotated[float, Field(ge=0, lt=1)] = 0.002  # accuracy on validation images that int8 may cost


class Input(_Part):
    height: PositiveInt = 28
    width: PositiveInt = 28
    channels: Literal[1, 3] = 1
    resize: Literal["stretch", "pad", "crop"] = "stretch"
    filter: Literal["box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    background: Literal["black", "white"] = "black"

    def spec(self) -> InputSpec:
        return InputSpec(
            **self.model_dump(),
            orientation="apply",
            sixteen_bit="high_byte",
            palette="expand",
            cmyk="convert",
            animation="first_frame",
            jpeg="reduced",
        )


class Recipe(_Part):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]  # of the bundle
    title: str
    source: str  # a named data set, or a path
    target: str
    network: Network = Network()
    objective: Objective = Objective()
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 on machines that compute it faster; weights stay fp32
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    input: Input = Input()
    split: Split = Split()
    pretrain: Pretrain = Pretrain()
    transfer: Transfer = Transfer()
    decoder: Stage = Stage()
    anomaly: Score = Score()
    export: Export = Export()

    @model_validator(mode="after")
    def int8_is_held_to_an_accuracy(self) -> "Recipe":
        if self.export.int8 and (self.transfer.mode == "decoder" or self.transfer.adapts):
            raise ValueError("export.int8: without labels there is no accuracy to hold it to")
        return self

    @model_validator(mode="after")
    def adaptation_is_not_stopped_early(self) -> "Recipe":
        if self.transfer.adapts and self.transfer.patience is not None:
            raise ValueError(f"transfer.patience: with mode {self.transfer.mode} no loss tells which epoch is best")
        return self

    @model_validator(mode="after")
    def views_differ(self) -> "Recipe":
        if self.objective.contrast and self.pretrain.augment == Augment():
            raise ValueError("objective.contrast: two views of an image are alike without pretrain.augment")
        return self

    @model_validator(mode="after")
    def only_squares_are_transposed(self) -> "Recipe":
        flips, size = (self.pretrain.augment.flip, self.transfer.augment.flip), (self.input.height, self.input.width)
        for setting, asked in (("augment.flip=any", "any" in flips), ("symmetries", self.transfer.symmetries)):
            if asked and size[0] != size[1]:
                raise ValueError(f"{setting} is for squares, not for {size[0]} by {size[1]} pixels")
        return self

    @model_validator(mode="after")
    def something_was_learnt_before(self) -> "Recipe":
        if self.transfer.pretrains and not self.pretrain.epochs and self.network.weights is None:
            raise ValueError("pretrain.epochs=0: nothing is learnt before; set network.weights, or mode=scratch")
        return self

    @model_validator(mode="after")
    def decoder_is_not_augmented(self) -> "Recipe":
        if self.decoder.augment != Augment():
            raise ValueError("decoder.augment: the encoder is frozen there, and runs once per image")
        return self


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(recipe: str, changes: list[str]) -> Recipe:
    """`recipe` is a name of ours or the path of a TOML file; `changes` are key=value, as in pretrain.epochs=3."""
    path = FOLDER / f"{recipe}.toml" if recipe in names() else Path(recipe)
    try:
        fields = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise TrainingError(
            f"no recipe {recipe!r}: ours are {', '.join(names())}; or give the path of a file"
        ) from None
    except (OSError, ValueError) as error:
        raise TrainingError(f"recipe {path}: {error}") from None
    for change in changes:
        _set(fields, change)
    try:
        return Recipe(**fields)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise TrainingError(f"recipe {recipe}: " + "; ".join(told)) from None


def _set(fields: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise TrainingError(f"--set {change}: write key=value, as in pretrain.epochs=3")
    *tables, last = key.split(".")
    for table in tables:
        fields = fields.setdefault(table, {})
        if not isinstance(fields, dict):
            raise TrainingError(f"--set {change}: {table} is not a table")
    try:
        fields[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        fields[last] = value  # a bare word is a string
