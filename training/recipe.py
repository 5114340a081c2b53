"""Recipes: named experiments. A TOML file lists what differs from the defaults here, each line with its reason."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.bundle import InputSpec
from app.bundle.index import MOST_EXAMPLES
from app.bundle.manifest import TILE_STEP, Colour, Tiles
from app.bundle.scoring import PATCHES, takes_and_measure
from training.errors import TrainingError, in_short, printable

FOLDER = Path(__file__).parent / "recipes"
RECIPE_FILE = "recipe.json"  # in the folder of a run or a comparison
IMAGENET = "imagenet"  # network.weights: those that are published for the backbone
STORED = "stored"  # pydantic's context where a recipe is read that a run or a bundle keeps
_ONCE_KINDS = ("resnet18", "resnet50")  # of networks, before they were backbones
TOP = 0.003  # share of an image's places whose mean is its distance by patches; of a picture in tiles, of a tile's
DISTANCES = ("reconstruction", "embedding.mahalanobis")  # of the anomaly score, unless a recipe names others

# As pydantic's, but bounded: torch and numpy raise OverflowError above.
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Backbone = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "resnet18", "resnet50"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
Resize = Literal["stretch", "pad", "crop"]


class Network(_Part):
    kind: Literal["conv", "conv-seed", "dense", "unet"] = "conv"
    backbone: Backbone | None = None  # a published network in the place of `kind`
    weights: str | None = None  # of the backbone: imagenet (what is published for it), or a file by path or URL
    stages: PositiveInt | None = None  # of a backbone the first so many; the blocks above are left out
    width: PositiveInt = 32  # conv: channels of the first stage, doubled by each; backbone: of the decoder
    depth: PositiveInt = 1  # conv: residual blocks in each stage
    most: PositiveInt = 256  # conv and a backbone's decoder: channels of no stage exceed it
    stem: NonNegativeInt = 0  # conv: channels of a convolution at the full size, before the first halving
    hidden: PositiveInt = 512  # dense: between pixels and code
    shortcuts: bool = True  # conv: residual blocks; without, a plain convolution for each
    latent: PositiveInt = 64  # conv and dense; the others' codes have a size of their own
    activation: Literal["linear", "relu", "sigmoid"] = "linear"  # conv and dense: of the code, as it is used
    grid: PositiveInt = 4  # cells of a side to which the stages' maps are pooled for a head; of a backbone, 1
    maxima: bool = False  # of each cell the largest value, beside the average
    variational: bool = False  # conv and dense

    @model_validator(mode="before")
    @classmethod
    def backbones(cls, table: Any) -> Any:
        """A backbone has its published weights unless others are named, and its maps' averages; older recipes name it
        as `kind`."""
        if not isinstance(table, dict):
            return table
        if table.get("kind") in _ONCE_KINDS and table.get("backbone") is None:
            return {**{name: value for name, value in table.items() if name != "kind"}, "backbone": table["kind"]}
        return {"weights": IMAGENET, "grid": 1, **table} if table.get("backbone") is not None else table

    @property
    def name(self) -> str:
        return self.backbone or self.kind

    @model_validator(mode="after")
    def fits(self) -> "Network":
        if self.variational and self.name not in ("conv", "dense"):
            raise ValueError(f"variational is for conv and dense, not for {self.name}")
        if self.activation != "linear" and self.name not in ("conv", "dense"):
            raise ValueError(f"activation is for conv and dense, not for {self.name}")
        if self.activation != "linear" and self.variational:
            raise ValueError(
                f"activation={self.activation}: a variational code is drawn from a normal: leave it linear"
            )
        if self.weights is not None and self.backbone is None:
            raise ValueError(f"weights are for a backbone, not for {self.kind}: set network.backbone")
        if self.stages is not None and self.backbone is None:
            raise ValueError(f"stages are of a backbone, not of {self.kind}: set network.backbone")
        return self


class Objective(_Part):
    """reconstruction + contrast + corruption + penalty, each absent at zero."""

    loss: Literal["bce", "mse"] = "bce"
    reconstruction: Annotated[float, Field(ge=0)] = 1  # weight of the reconstruction loss
    contrast: Annotated[float, Field(ge=0)] = 0  # weight of the contrastive loss of two views of an image
    temperature: Annotated[float, Field(gt=0)] = 0.2  # of contrast: the lower, the more the most similar images count
    noise: Annotated[float, Field(ge=0)] = 0  # standard deviation of noise added to pixels in 0…1
    mask: Annotated[float, Field(ge=0, lt=1)] = 0  # share of 4×4 patches that are blacked out
    l1: Annotated[float, Field(ge=0)] = 0  # weight of the code's mean magnitude
    kl: Annotated[float, Field(ge=0)] = 0  # weight of the divergence of units' mean from `activity`; of a sigmoid code
    activity: Annotated[float, Field(gt=0, lt=1)] = 0.05
    beta: Annotated[float, Field(ge=0)] = 1  # weight of a variational code's divergence from the prior
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.2  # share of the steps over which beta rises from 0

    @model_validator(mode="after")
    def asks_for_something(self) -> "Objective":
        if not self.reconstruction and not self.contrast:
            raise ValueError("reconstruction and contrast are both zero: nothing is left to learn")
        return self


class Augment(_Part):
    """Random changes of training images; none by default."""

    # Left and right exchanged; any of left, right, top and bottom; or, of squares, rows and columns as well.
    flip: Literal["none", "across", "both", "any"] = "none"
    crop: Annotated[float, Field(gt=0, le=1)] = 1  # a part of at least this share of the image is enlarged to its size
    shift: NonNegativeInt = 0  # pixels, each way, at most; what moves in is black
    turn: Annotated[float, Field(ge=0, le=180)] = 0  # degrees, each way, at most
    scale: Annotated[float, Field(ge=0, lt=1)] = 0  # larger or smaller by this share, at most
    light: Annotated[float, Field(ge=0, le=1)] = 0  # contrast changes by this share at most, brightness by half of it
    erase: Annotated[float, Field(ge=0, le=1)] = 0  # how often a rectangle is filled with noise
    # Two of ten changes of colour and geometry for each image, as in RandAugment; 1 is the strongest.
    rand_augment: Annotated[float, Field(ge=0, le=1)] = 0


class Stage(_Part):
    """One run of the training loop."""

    epochs: PositiveInt = 10
    batch: PositiveInt = 128
    rate: Annotated[float, Field(gt=0)] = 1e-3
    optimiser: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd, Nesterov's
    weight_decay: Annotated[float, Field(ge=0)] = 0  # of weights; norms and biases have none
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    clip: Annotated[float, Field(gt=0)] | None = None  # the gradient's norm
    ema: Annotated[float, Field(ge=0, lt=1)] = 0  # decay of the average of weights that is evaluated and kept; 0: none
    augment: Augment = Augment()  # of stages in which the encoder learns
    patience: PositiveInt | None = None  # epochs without a better validation loss before the stage ends


class Pretrain(Stage):
    epochs: NonNegativeInt = 10  # none: network.weights are all the pretraining there is


class DecoderStage(Stage):
    epochs: NonNegativeInt = 10  # none: the bundle has no decoder, and does not reconstruct


class _Mode(_Part):
    """What every mode has."""

    untrained: ClassVar[bool] = False  # begins with random weights
    distils: ClassVar[bool] = False  # a teacher's features are learnt in the place of pretraining
    adapts: ClassVar[bool] = False  # the labels are the source's
    freezes: ClassVar[bool] = False  # the encoder stays as it was pretrained
    labels: ClassVar[bool] = True  # the target's or the source's are learnt

    reads: Literal["embedding", "features"] = "features"  # the code, or the pooled maps of every stage

    @property
    def pretrains(self) -> bool:
        return not self.untrained and not self.adapts and not self.distils


class LabelMode(Stage, _Mode):
    """What the modes share that learn labels."""

    mode: str
    class_weights: bool = False  # each class counts alike in the loss, however many images it has
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0  # share of a label's weight that all classes have alike
    hidden: NonNegativeInt = 0  # units of a layer between what the head reads and the labels; 0 is a linear head

    @model_validator(mode="after")
    def augments_what_learns(self) -> Self:
        if self.freezes and self.augment != Augment():
            raise ValueError(f"transfer.augment: with mode {self.mode} the encoder is frozen, and runs once per image")
        return self

    def as_full(self) -> "FullMode":
        """Head and whole encoder, by the settings that both modes have."""
        return FullMode(**self._shared_with(FullMode))

    def as_scratch(self) -> "ScratchMode":
        return ScratchMode(**self._shared_with(ScratchMode))

    def _shared_with(self, other: type["LabelMode"]) -> dict[str, Any]:
        # slower_below is of gradual's schedule.
        own = [name for name in type(self).model_fields if name not in ("mode", "slower_below")]
        return {name: getattr(self, name) for name in other.model_fields if name in own}


class MixingMode(LabelMode):
    """Images and their labels may be mixed in pairs; with both settings, each batch is mixed by either."""

    mixup: Annotated[float, Field(ge=0)] = 0  # α of the Beta distribution of an image's share (0.2 is usual); 0: none
    cutmix: Annotated[float, Field(ge=0)] = 0  # the same, of a rectangle cut from the other image (1 is usual)


class ThawingMode(MixingMode):
    """A pretrained encoder goes on learning."""

    freeze_norms: bool = False  # batch norms keep the statistics they were pretrained with; their weights learn


class DecoderMode(_Mode):
    """No labels: encoder frozen, the decoder alone is fine-tuned (as it is, at the end, in every mode)."""

    freezes, labels = True, False
    mode: Literal["decoder"] = "decoder"


class PasteMode(Stage, _Mode):
    """No labels, no pretraining: the network learns to find pieces of other images that are pasted into each."""

    untrained, labels = True, False
    mode: Literal["paste"] = "paste"
    samples: PositiveInt = 512  # images of an epoch, however few or many there are
    side: NonNegativeInt = 128  # pixels of the squares that are cut out to train on, at most; 0: whole images
    pieces: PositiveInt = 3  # in an image, at most, or lines
    lines: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of the images that have thin lines in the place of pieces
    sound: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of the images that stay as they are
    seamless: Annotated[float, Field(ge=0, le=1)] = 0.7  # share of the pieces that take the levels of their place

    @model_validator(mode="after")
    def ends_with_its_epochs(self) -> Self:
        if self.patience is not None:
            raise ValueError("transfer.patience: with mode paste the last epoch is kept, so every fold has as many")
        return self


class HeadMode(LabelMode):
    """Encoder frozen, a head learns the labels."""

    freezes = True
    mode: Literal["head"] = "head"


class LinearMode(_Mode):
    """Encoder frozen, a linear head by logistic regression; its penalty is chosen by cross-validation."""

    freezes = True
    mode: Literal["linear"] = "linear"
    class_weights: bool = False  # each class counts alike in the loss, however many images it has


class RandomFrozenMode(LabelMode):
    """As head, without pretraining: what features have to beat."""

    freezes = True
    untrained = True
    mode: Literal["random-frozen"] = "random-frozen"


class GradualMode(ThawingMode):
    """Head first, then the encoder's blocks from the top down, each slower than the one above."""

    mode: Literal["gradual"] = "gradual"
    slower_below: Annotated[float, Field(gt=0, le=1)] = 0.5  # a block's rate, as a share of the block above
    # How the head begins: at random, and learns alone before the first block; or as mode linear finds it.
    begin: Literal["random", "linear"] = "random"
    thaw: NonNegativeInt = 0  # so many blocks from the top down are freed, the rest stay frozen; 0 is all
    # So many augmented views of each image are drawn once: with `thaw`, the blocks that stay frozen run once for each.
    # 0: every epoch draws new ones, and the frozen blocks run again. Mixup mixes what they gave (Verma et al. 2019).
    views: NonNegativeInt = 0

    @model_validator(mode="after")
    def views_differ(self) -> Self:
        if self.views and self.augment == Augment():
            raise ValueError("transfer.views: views are alike without transfer.augment")
        return self

    @model_validator(mode="after")
    def a_linear_head_has_no_hidden_layer(self) -> Self:
        if self.begin == "linear" and self.hidden:
            raise ValueError("transfer.begin=linear: such a head has no layer between: set transfer.hidden to 0")
        return self


class FullMode(ThawingMode):
    """Head and the whole encoder."""

    mode: Literal["full"] = "full"
    slower_below: Annotated[float, Field(gt=0, le=1)] = 1  # as in gradual; 1: all learn at the same rate

    def as_full(self) -> "FullMode":
        return self


class ScratchMode(MixingMode):
    """As full, without pretraining: what transfer has to beat."""

    untrained = True
    mode: Literal["scratch"] = "scratch"


class MultitaskMode(LabelMode):
    """Labels and reconstruction together."""

    mode: Literal["multitask"] = "multitask"
    reconstruction: Annotated[float, Field(ge=0)] = 1  # weight of the reconstruction loss


class DistilMode(MixingMode):
    """A smaller network learns a backbone's features without labels, by [pretrain]; then labels, head and encoder."""

    distils: ClassVar[bool] = True
    mode: Literal["distil"] = "distil"
    teacher: Backbone = "efficientnet-lite0"
    teacher_weights: str = IMAGENET  # as network.weights
    teacher_side: PositiveInt = 224  # pixels of the shorter side to which images are enlarged for the teacher
    # So many augmented views of each image, by pretrain.augment, are shown to the teacher beside the image itself: what
    # it sees of each is learnt. 0: the images alone are shown to it, and the network sees new views of them each epoch.
    views: NonNegativeInt = 0
    # Share of the labels' loss that the predictions of a linear head on the teacher have in the place of labels.
    soft: Annotated[float, Field(ge=0, le=1)] = 0

    @property
    def teacher_network(self) -> Network:
        return Network(backbone=self.teacher, weights=self.teacher_weights)


class EpisodicMode(LabelMode):
    """The encoder learns to tell classes by a few images of each, then a head: a base to graft."""

    mode: Literal["episodic"] = "episodic"
    way: Annotated[int, Field(ge=2, lt=2**31)] = 10  # classes of an episode, or as many as there are
    shots: PositiveInt = 5  # images of each class that its prototype is the mean of
    queries: PositiveInt = 10  # images of each class that are classified by the prototypes
    symmetries: bool = False  # turned and mirrored, a class makes seven more


class AdaptMode(LabelMode):
    """The source's labels; the target's images have none, or theirs are read by the test alone. No pretraining."""

    adapts = True

    @model_validator(mode="after")
    def is_not_stopped_early(self) -> Self:
        if self.patience is not None:
            raise ValueError(f"transfer.patience: with mode {self.mode} no loss tells which epoch is best")
        return self


class DannMode(AdaptMode):
    """The encoder learns features from which a classifier cannot predict the domain."""

    mode: Literal["dann"] = "dann"
    adaptation: Annotated[float, Field(ge=0)] = 1  # weight of the penalty, once it has risen


class MmdMode(AdaptMode):
    """The maximum mean discrepancy of the domains as a penalty."""

    mode: Literal["mmd"] = "mmd"
    adaptation: Annotated[float, Field(ge=0)] = 1  # as in dann


class SourceOnlyMode(AdaptMode):
    """Labels of the source alone: what dann and mmd have to beat."""

    mode: Literal["source-only"] = "source-only"


# How the pretrained network is transferred to the target.
Transfer = Annotated[
    DecoderMode
    | HeadMode
    | LinearMode
    | GradualMode
    | FullMode
    | MultitaskMode
    | DistilMode
    | EpisodicMode
    | ScratchMode
    | RandomFrozenMode
    | DannMode
    | MmdMode
    | SourceOnlyMode
    | PasteMode,
    Field(discriminator="mode"),
]
MODES: dict[str, type[_Mode]] = {kind.model_fields["mode"].default: kind for kind in get_args(get_args(Transfer)[0])}


def _own_settings(table: Any, info: ValidationInfo) -> Any:
    """Refuse a setting that another mode has; a stored recipe loses it, for it had no effect."""
    if not isinstance(table, dict):
        return table
    table = {"mode": HeadMode().mode, **table}
    if table["mode"] not in list(MODES):
        return table  # pydantic names the modes
    own = MODES[table["mode"]].model_fields
    for name in [name for name in table if name not in own]:
        owners = [mode for mode, kind in MODES.items() if name in kind.model_fields]
        if owners and info.context == STORED:
            del table[name]
        elif owners:
            raise ValueError(_not_of_this_mode(name, table["mode"], owners))
    return table


def _not_of_this_mode(name: str, mode: str, owners: list[str]) -> str:
    if mode == "decoder" and name in Stage.model_fields:
        return f"transfer.{name}: mode decoder trains the decoder alone; set decoder.{name}, or another transfer.mode"
    belongs = f"mode {owners[0]}" if len(owners) == 1 else f"modes {', '.join(owners)}"
    return f"transfer.{name} belongs to {belongs}, and the mode is {mode}: leave it out, or set transfer.mode"


class Split(_Part):
    """Seeded, stratified by class. The test part is used for no choice."""

    test: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share kept back where the data set has no test part of its own
    validation: PositiveInt = 5000  # of the training part, at most; and no more than a tenth of it
    calibration: PositiveInt = 5000  # the same; and no more than a fifth
    groups: str | None = None  # keeps images together: a CSV of file,group, or a regular expression on the path
    # The class of sound images, where the others are kinds of defect: it alone is trained on. By default it is the only
    # class of the training part, if there is just one.
    sound: str | None = None
    # Nothing is held out for validation, calibration and, where the data set has no test part, for a test: accuracy,
    # temperature and threshold come from what networks say of so many folds that have not learnt from them, and what is
    # published has learnt from all images. 0: parts are held out.
    folds: Annotated[int, Field(ge=0, le=100)] = 0
    repeats: PositiveInt = (
        1  # of the folds, each time dealt anew: for a few dozen images, by which one deal may be luck
    )

    @field_validator("folds")
    @classmethod
    def a_fold_leaves_others(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves none to learn from; set 2 or more, or 0")
        return folds


def _one_or_more(distances: Any) -> Any:
    return (distances,) if isinstance(distances, str) else distances


class Score(_Part):
    """The anomaly score: a sum of distances, each in its own standard deviations among normals."""

    distances: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = DISTANCES
    patches: PositiveInt = 2000  # of the distance patches: so many patches of normal images are kept in each level
    # Of the same: pixels from place to place of the stage maps that are read. That of the largest stride is a level of
    # its own, the others are joined on the places of the largest but one. Unset, the three sizes above the smallest.
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    # No normals are held out: scales, threshold and p-values come from the scores of each of so many folds by the
    # others. 0: from the part of split.calibration.
    folds: Annotated[int, Field(ge=0, le=100)] = 0

    @model_validator(mode="after")
    def settings_are_used(self) -> Self:
        if self.folds == 1:
            raise ValueError("anomaly.folds=1: one fold leaves none to fit on; set 2 or more, or 0")
        if self.strides is not None and PATCHES not in self.distances:
            raise ValueError("anomaly.strides are of the distance patches: name it in anomaly.distances")
        return self

    @field_validator("distances")
    @classmethod
    def are_known(cls, distances: tuple[str, ...]) -> tuple[str, ...]:
        for distance in distances:
            takes_and_measure(distance)  # a ValueError names the one that is not
        return distances


class Export(_Part):
    int8: bool = False  # graphs of eight-bit integers, where they hold their accuracy
    # What int8 may cost on validation images, of what the bundle has: accuracy; the mean cosine between embeddings in
    # floats and in integers, each less the mean embedding; the anomaly score's AUROC against drawn images.
    most_lost: Annotated[float, Field(ge=0, lt=1)] = 0.002
    least_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.95
    most_auroc_lost: Annotated[float, Field(ge=0, lt=1)] = 0.01
    # Images to train on that the bundle names as evidence, and of which /v1/similar finds the nearest; 0: none.
    index: Annotated[int, Field(ge=0, le=MOST_EXAMPLES)] = 2000
    thumbnails: bool = False  # of these images; everyone who may ask the service sees them
    # Codes of images to train on and of held-out ones, of each part, by which `graft-train learn` fits and judges a
    # head again; 0: none.
    codes: Annotated[int, Field(ge=0, le=MOST_EXAMPLES)] = 2000


class Input(_Part):
    """What the encoder takes. `auto` and `mean` are decided by the target's training images, in data/resolution.py."""

    height: PositiveInt | Literal["auto"] = 28
    width: PositiveInt | Literal["auto"] = 28
    short_side: PositiveInt = 224  # pixels, of an automatic size, at most
    channels: Literal[1, 3, "auto"] = 1  # auto: 1 if all images are grey
    resize: Resize = "stretch"
    padding: Literal["background", "edge", "mean"] | Colour = "background"  # of pad: what fills the bars
    filter: Literal["box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    background: Literal["black", "white"] = "black"  # behind alpha
    # Side of the tiles into which pictures are cut in their own resolution, in pixels; it is the height and the width,
    # and takes the place of `resize`. Unset, a picture is scaled to the input as a whole.
    tiles: Annotated[int, Field(ge=TILE_STEP, le=2048, multiple_of=TILE_STEP)] | None = None
    # Pixels that neighbouring tiles share, at least; unset, an eighth of the side, to a multiple of 32 but above 0.
    overlap: Annotated[int, Field(ge=0, multiple_of=TILE_STEP)] | None = None
    scale: Annotated[float, Field(gt=0, le=1)] = 1  # of a picture's own resolution, at which it is cut

    @model_validator(mode="before")
    @classmethod
    def tiles_have_the_size(cls, table: Any) -> Any:
        tiles = table.get("tiles") if isinstance(table, dict) else None
        if not isinstance(tiles, int):
            return table
        for side in ("height", "width"):
            if table.get(side, "auto") not in ("auto", tiles):
                raise ValueError(f"{side}={table[side]}: with tiles={tiles}, that is height and width: leave it out")
        eighth = TILE_STEP * max(1, (tiles + 4 * TILE_STEP) // (8 * TILE_STEP)) if tiles > TILE_STEP else 0
        given = {name: value for name, value in table.items() if value is not None}
        return {"overlap": eighth, **given, "height": tiles, "width": tiles}

    @model_validator(mode="after")
    def tiles_are_whole(self) -> "Input":
        if self.tiles is None:
            if (self.overlap, self.scale) != (None, 1):
                raise ValueError("overlap and scale are of tiles: set tiles, too")
            return self
        if self.overlap is None or self.overlap >= self.tiles:
            raise ValueError(f"overlap={self.overlap}: must be below tiles={self.tiles}")
        if self.resize != "stretch":
            raise ValueError(f"resize={self.resize}: a picture that is cut into tiles keeps its shape: leave it out")
        return self

    @model_validator(mode="after")
    def padding_is_used(self) -> "Input":
        if self.padding != "background" and self.resize != "pad":
            raise ValueError(f"padding fills the bars of resize=pad, and resize is {self.resize}")
        if isinstance(self.padding, tuple) and self.channels != len(self.padding):
            raise ValueError(f"padding has {len(self.padding)} levels for {self.channels} channels")
        return self

    @property
    def left_open(self) -> dict[str, str]:
        """The settings that training images decide, as they are written."""
        settings = {name: getattr(self, name) for name in ("height", "width", "channels", "padding")}
        return {name: value for name, value in settings.items() if value in ("auto", "mean")}

    def settled_as(self, other: "Input") -> "Input":
        """With the values of another where this one leaves them open."""
        return self.model_copy(update={name: getattr(other, name) for name in self.left_open})

    def spec(self) -> InputSpec:
        for name, value in self.left_open.items():
            raise TrainingError(f"input.{name}={value} was not decided by images: write a number or a colour")
        return InputSpec(
            **self.model_dump(exclude={"short_side", "tiles", "overlap", "scale"}),
            tiles=None if self.overlap is None else Tiles(overlap=self.overlap, scale=self.scale, largest=TOP),
            orientation="apply",
            sixteen_bit="high_byte",
            palette="expand",
            cmyk="convert",
            animation="first_frame",
            jpeg="reduced",
        )


_OF_BACKBONES = (  # defaults
    *(("pretrain", "epochs", 0), ("decoder", "epochs", 0)),
    *(("input", "height", "auto"), ("input", "width", "auto"), ("input", "channels", 3)),
)


class Recipe(_Part):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]  # of the bundle
    title: str
    source: str  # a named data set, or a path
    target: str
    network: Network = Network()
    objective: Objective = Objective()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    # auto and bf16: bf16 where the machine computes this network faster with it, else fp32; weights stay fp32.
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    input: Input = Input()
    split: Split = Split()
    pretrain: Pretrain = Pretrain()
    transfer: Annotated[Transfer, BeforeValidator(_own_settings)] = HeadMode()
    decoder: DecoderStage = DecoderStage()
    anomaly: Score = Score()
    export: Export = Export()

    @model_validator(mode="before")
    @classmethod
    def backbones_have_other_defaults(cls, fields: Any, info: ValidationInfo) -> Any:
        """Where a recipe names a backbone: no pretraining, no decoder, three channels, the images' own size."""
        network = fields.get("network") if isinstance(fields, dict) else None
        if not isinstance(network, dict) or network.get("backbone") is None or info.context == STORED:
            return fields
        for part, name, value in _OF_BACKBONES:
            table = fields.get(part, {})
            if isinstance(table, dict) and name not in table:
                fields = {**fields, part: {**table, name: value}}
        decoder = fields["decoder"]
        if isinstance(decoder, dict) and decoder.get("epochs") == 0 and "distances" not in fields.get("anomaly", {}):
            without = [name for name in DISTANCES if name != "reconstruction"]
            fields = {**fields, "anomaly": {**fields.get("anomaly", {}), "distances": without}}
        return fields

    @model_validator(mode="after")
    def what_reconstructs_has_a_decoder(self) -> Self:
        if self.decoder.epochs:
            return self
        if "reconstruction" in self.anomaly.distances:
            raise ValueError(
                "decoder.epochs=0: without a decoder nothing is reconstructed: take reconstruction out of "
                "anomaly.distances, or set decoder.epochs above 0"
            )
        if self.network.backbone is None and self.transfer.mode == "decoder":
            raise ValueError("decoder.epochs=0 with transfer.mode=decoder: nothing of the target would be learnt")
        return self

    @model_validator(mode="after")
    def patches_have_places(self) -> Self:
        if PATCHES in self.anomaly.distances and self.network.name == "dense":
            raise ValueError(
                "anomaly.distances: patches are places of maps, and dense has none: choose another network"
            )
        return self

    @model_validator(mode="after")
    def what_finds_defects_is_what_scores_them(self) -> Self:
        mode, unet = self.transfer.mode, self.network.name == "unet"
        if (mode == "paste") != unet:
            other = "transfer.mode=paste" if unet else "network.kind=unet"
            raise ValueError(
                f"network.kind={self.network.name} with transfer.mode={mode}: kind unet marks defects, and mode paste "
                f"trains what marks them: set {other}, too"
            )
        if not unet:
            return self
        if self.anomaly.distances != (PATCHES,):
            raise ValueError('transfer.mode=paste: its marks are the score: set anomaly.distances=["patches"]')
        for name in ("strides", "patches"):
            if getattr(self.anomaly, name) != Score.model_fields[name].default:
                raise ValueError(f"anomaly.{name}: with transfer.mode=paste no patches are kept: leave it out")
        if self.network.stem or not self.network.shortcuts:
            raise ValueError("network.stem and network.shortcuts are for kind conv, not for unet")
        return self

    @model_validator(mode="after")
    def tiles_are_judged_by_patches(self) -> Self:
        if self.input.tiles is None:
            return self
        if self.anomaly.distances != (PATCHES,):
            raise ValueError(
                'input.tiles: a picture in tiles is judged by its patches alone: set anomaly.distances=["patches"], as '
                "the recipe inspect has it"
            )
        if self.network.backbone is None or not self.transfer.freezes or self.transfer.mode != "decoder":
            raise ValueError(
                "input.tiles: nothing is learnt from tiles but their patches: name a published network in "
                "network.backbone, and set transfer.mode=decoder"
            )
        for part, setting in (("pretrain.epochs", self.pretrain.epochs), ("decoder.epochs", self.decoder.epochs)):
            if setting:
                raise ValueError(f"{part}={setting}: with input.tiles no network is trained: set it to 0")
        if self.export.int8:
            raise ValueError("export.int8: graphs of integers do not take tiles yet: leave out one of the two")
        return self

    @model_validator(mode="after")
    def folds_are_new_to_the_encoder(self) -> Self:
        """An encoder that has learnt from the normals makes their scores lower than those of new ones.

        In mode paste each fold has a network that has not.
        """
        mode = self.transfer
        if isinstance(mode, PasteMode):
            return self
        if self.anomaly.folds and not self.encoder_is_given and not self.split.folds:
            raise ValueError(
                f"anomaly.folds={self.anomaly.folds}: the encoder learns from the images that the folds hold, so their "
                "scores would be too low: set anomaly.folds=0, or freeze the encoder (pretrain.epochs=0 and "
                "transfer.mode=decoder)"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def folds_are_those_of_the_score(cls, fields: Any, info: ValidationInfo) -> Any:
        """Where no part is held out for labels, none is for the score."""
        split = fields.get("split") if isinstance(fields, dict) else None
        folds = split.get("folds") if isinstance(split, dict) else None
        score = fields.get("anomaly", {}) if folds else None
        if info.context == STORED or not isinstance(score, dict) or "folds" in score:
            return fields
        return {**fields, "anomaly": {**score, "folds": folds}}

    @model_validator(mode="after")
    def folds_can_be_crossed(self) -> Self:
        split, mode = self.split, self.transfer
        if not split.folds:
            if split.repeats > 1:
                raise ValueError(f"split.repeats={split.repeats}: it is folds that are repeated: set split.folds, too")
            return self
        if mode.adapts:
            raise ValueError(f"split.folds: mode {mode.mode} has no labels of the target to cross: leave it out")
        if not self.anomaly.folds:
            raise ValueError("split.folds holds no images out: the score needs anomaly.folds, too")
        if not mode.labels and not self.encoder_is_given and not isinstance(mode, PasteMode):
            raise ValueError(
                f"split.folds: mode {mode.mode} would pretrain on the images it is measured on: leave it out"
            )
        if mode.labels and not self.encoder_is_given and PATCHES in self.anomaly.distances:
            raise ValueError(
                f"split.folds: mode {mode.mode} trains a network for each fold, and their patches cannot be compared: "
                "take patches out of anomaly.distances"
            )
        return self

    @property
    def encoder_is_given(self) -> bool:
        """Whether no image of the target changes the encoder."""
        return self.transfer.freezes and (self.transfer.untrained or not self.pretrain.epochs)

    @model_validator(mode="after")
    def activities_are_shares(self, info: ValidationInfo) -> Self:
        """Older recipes penalised the sigmoid of a code that nothing else took the sigmoid of: they can be read."""
        if self.objective.kl and self.network.activation != "sigmoid" and info.context != STORED:
            raise ValueError(
                "objective.kl compares mean activities in 0…1: set network.activation=sigmoid, or use objective.l1"
            )
        return self

    @model_validator(mode="after")
    def views_differ(self) -> "Recipe":
        if self.objective.contrast and self.pretrain.augment == Augment():
            raise ValueError("objective.contrast: two views of an image are alike without pretrain.augment")
        return self

    @model_validator(mode="after")
    def only_squares_are_transposed(self) -> "Recipe":
        flips = {stage.augment.flip for stage in (self.pretrain, self.transfer) if isinstance(stage, Stage)}
        symmetries = isinstance(self.transfer, EpisodicMode) and self.transfer.symmetries
        height, width = self.input.height, self.input.width
        if "auto" in (height, width):
            return self  # asked again when they are numbers
        for setting, asked in (("augment.flip=any", "any" in flips), ("symmetries", symmetries)):
            if asked and height != width:
                raise ValueError(f"{setting} is for squares, not for {height} by {width} pixels")
        return self

    @model_validator(mode="after")
    def shifts_stay_inside(self) -> "Recipe":
        for name, stage in (("pretrain", self.pretrain), ("transfer", self.transfer)):
            side = min((side for side in (self.input.height, self.input.width) if side != "auto"), default=2**31)
            if isinstance(stage, Stage) and stage.augment.shift >= side:
                raise ValueError(
                    f"{name}.augment.shift={stage.augment.shift}: must be below the image's side of {side}"
                )
        return self

    @model_validator(mode="after")
    def something_was_learnt_before(self) -> "Recipe":
        if self.transfer.pretrains and not self.pretrain.epochs and self.network.weights is None:
            raise ValueError("pretrain.epochs=0: nothing is learnt before; set network.weights, or mode=scratch")
        return self

    @model_validator(mode="after")
    def views_spare_frozen_blocks(self) -> Self:
        mode = self.transfer
        if isinstance(mode, GradualMode) and mode.views:
            if self.network.backbone is None or not mode.thaw:
                raise ValueError("transfer.views: they are for a backbone of which blocks stay frozen: set thaw, too")
            if mode.cutmix:
                raise ValueError("transfer.views: cutmix makes new images in every batch: leave out either, or mixup")
        return self

    @model_validator(mode="after")
    def a_network_of_ours_is_distilled(self) -> Self:
        if not isinstance(self.transfer, DistilMode):
            return self
        if self.network.backbone is not None and self.network.stages is None:
            raise ValueError(
                "transfer.mode=distil: a smaller network learns from a backbone: name that in transfer.teacher, and "
                "leave out network.backbone, or set network.stages: its lower blocks are the smaller network"
            )
        if not self.pretrain.epochs:
            raise ValueError("pretrain.epochs=0: nothing is learnt of the teacher; set it above 0, or mode=scratch")
        if self.transfer.views and self.pretrain.augment == Augment():
            raise ValueError("transfer.views: views are alike without pretrain.augment")
        return self

    @model_validator(mode="after")
    def decoder_is_not_augmented(self) -> "Recipe":
        if self.decoder.augment != Augment():
            raise ValueError("decoder.augment: the encoder is frozen there, and runs once per image")
        return self

    @property
    def published_networks(self) -> list[Network]:
        """Those whose weights must be at hand before training begins."""
        teacher = [self.transfer.teacher_network] if isinstance(self.transfer, DistilMode) else []
        return [network for network in (self.network, *teacher) if network.weights is not None]

    @property
    def members(self) -> int:
        """How many networks find defects together: one for each fold, which has not seen it."""
        return max(1, self.anomaly.folds) if isinstance(self.transfer, PasteMode) else 1

    @property
    def trains_posterior(self) -> bool:
        """Whether the published encoder's variances, and a code near the prior, are what was trained for.

        Pretraining does so; an encoder that goes on learning afterwards, without the divergence, undoes it.
        """
        kept = self.transfer.pretrains and self.transfer.freezes
        return self.network.variational and kept and bool(self.objective.beta and self.objective.reconstruction)

    @model_validator(mode="after")
    def variances_are_trained(self, info: ValidationInfo) -> Self:
        """Of stored recipes this is not asked: what they trained is published without a variational code."""
        if not self.network.variational or info.context == STORED:
            return self
        if not self.trains_posterior:
            for name in ("beta", "reconstruction"):
                if not getattr(self.objective, name):
                    raise ValueError(f"objective.{name}=0: a variational code is trained by both parts; set it above 0")
            raise ValueError(
                f"network.variational: transfer.mode={self.transfer.mode} would publish variances that were not "
                "trained with the rest of the encoder: set transfer.mode to head, linear or decoder, or variational to "
                "false"
            )
        return self

    @classmethod
    def stored(cls, text: str) -> "Recipe":
        """What a run's folder or a manifest keeps, written by this Graft or by an older one.

        Older ones list the settings of all modes: those of others than the recipe's own are left out.
        """
        return cls.model_validate_json(text, context=STORED)

    def settled_as(self, other: "Recipe") -> "Recipe":
        """With the other's values where this one leaves the input to the images."""
        return self.model_copy(update={"input": self.input.settled_as(other.input)})

    def with_parts(self, **parts: Any) -> "Recipe":
        """The recipe with other parts; they must go together."""
        return _validated(self.name, self.model_copy(update=parts).model_dump())


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(recipe: str, changes: list[str]) -> Recipe:
    """`recipe` is a name of ours or the path of a TOML file; `changes` are key=value, as in pretrain.epochs=3.

    Where they change the mode, the file's settings that only its own mode has are left out.
    """
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
        key, _, value = change.partition("=")
        if key == "transfer.mode":
            _leave_mode(fields.get("transfer"), _value(key, value))
    for change in changes:
        _set(fields, change)
    return _validated(recipe, fields)


def _validated(name: str, fields: dict[str, Any]) -> Recipe:
    try:
        return Recipe(**fields)
    except ValidationError as error:
        messages = dict.fromkeys(_message(each["loc"], each["msg"]) for each in error.errors() if not _beside(each))
        raise TrainingError(f"recipe {name}: " + "; ".join(messages)) from None


_OF_A_UNION = re.compile(r"constrained-int|int|literal\[.*\]|tuple\[.*\]")  # pydantic's names of its members


def _beside(error: Any) -> bool:
    """Whether a number is also told which words could stand in its place."""
    return bool(error["loc"]) and str(error["loc"][-1]).startswith("literal[") and isinstance(error["input"], int)


def _message(place: tuple[int | str, ...], message: str) -> str:
    """pydantic's, without the names of a union's members and the class of the error."""
    keys = [
        str(key)
        for depth, key in enumerate(place)
        if not (depth == 1 and place[0] == "transfer" and key in MODES)
        and not (depth == 2 and _OF_A_UNION.fullmatch(str(key)))
    ]
    return ": ".join([*([".".join(keys)] if keys else []), message.removeprefix("Value error, ")])


def _leave_mode(table: Any, mode: Any) -> None:
    """Settings that the mode of a file's [transfer] has, and `mode` lacks, are dropped."""
    before = table.get("mode", HeadMode().mode) if isinstance(table, dict) else None
    if before in list(MODES) and mode in list(MODES):
        own, others = MODES[before].model_fields, MODES[mode].model_fields
        for name in [name for name in table if name in own and name not in others]:
            del table[name]


def _set(fields: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    *tables, last = key.split(".")
    if not equals or not all((*tables, last)):
        raise TrainingError(f"--set {printable(change)}: write key=value, as in pretrain.epochs=3")
    try:
        change.encode()
    except UnicodeEncodeError:  # the recipe is kept as UTF-8
        raise TrainingError(f"--set {printable(change)}: not UTF-8; rename the folder, or make a link to it") from None
    for table in tables:
        fields = fields.setdefault(table, {})
        if not isinstance(fields, dict):
            raise TrainingError(f"--set {change}: {table} is not a table")
    fields[last] = _value(key, value)


def _value(key: str, text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise TrainingError(f"--set {key}: the value cannot be read: {in_short(error)}") from None
    return table["value"] if len(table) == 1 else text


def to_toml(recipe: Recipe) -> str:
    """A recipe file that lists what differs from the defaults, and is read as the same recipe."""
    for fields in (
        recipe.model_dump(mode="json", exclude_defaults=True),
        recipe.model_dump(mode="json", exclude_none=True),
    ):
        fields.setdefault("transfer", {})["mode"] = recipe.transfer.mode
        for part, name, _ in _OF_BACKBONES if recipe.network.backbone else ():
            fields.setdefault(part, {})[name] = getattr(getattr(recipe, part), name)
        fields.setdefault("anomaly", {}).update(distances=list(recipe.anomaly.distances), folds=recipe.anomaly.folds)
        text = "\n".join(_toml_of(fields)) + "\n"
        if _validated(recipe.name, tomllib.loads(text)) == recipe:
            return text
    raise AssertionError("a recipe that lists every setting is read as itself")


def in_toml(value: Any) -> str:
    """A string, a number, a truth or a list of them, as TOML and as --set have it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_of(fields: dict[str, Any], table: str = "") -> Iterator[str]:
    if table:
        yield f"\n[{table}]"
    for name, value in fields.items():
        if not isinstance(value, dict) and value is not None:
            yield f"{name} = {in_toml(value)}"
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _toml_of(value, f"{table}.{name}" if table else name)


def write(recipe: Recipe, folder: Path) -> None:
    (folder / RECIPE_FILE).write_text(recipe.model_dump_json(indent=2) + "\n")


def read(folder: Path) -> Recipe:
    """The recipe in the folder of a run or a comparison."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise TrainingError(f"{folder}: not a run: {RECIPE_FILE} is missing; start one without --resume")
    try:
        return Recipe.stored(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise TrainingError(f"{path}: not a recipe of this Graft: {error}") from None
