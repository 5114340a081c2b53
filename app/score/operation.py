"""An operation bound to a bundle and its options: images → rows of results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP
from app.bundle.regions import Size
from app.bundle.scoring import threshold_at
from app.bundle.sets import SetOptions
from app.errors import CannotScore
from app.inference.answer import OutputRequest, Outputs, answer, answer_pictures
from app.inference.results import (
    OUTPUT_OF,
    Fields,
    anomaly_fields,
    anomaly_scores,
    classify_fields,
    encode_fields,
    heatmaps,
    in_domain_fields,
    map_output,
    merge,
    region_fields,
    set_fields,
)
from app.score.maps import Map, file_name

OPERATIONS = ("predict", "classify", "anomaly", "encode")
_WITH_MAPS = ("predict", "anomaly")


class Result(NamedTuple):
    row: Fields
    map: Map | None = None


@dataclass(frozen=True, slots=True)
class BoundOperation:
    """`predict` is classify and anomaly in one pass, where the model has both: the API's without the embedding."""

    bundle: Bundle
    name: str
    top_k: int | None
    false_alarm_rate: float | None
    sets: SetOptions | None = None
    maps: bool = False

    def __post_init__(self) -> None:
        """Raises CannotScore or OperationUnavailable, before any image is read."""
        bundle = self.bundle
        bundle.require(self.name)
        if not self._parts:
            raise CannotScore(
                f"model {bundle.name}@{bundle.version} has neither head nor anomaly calibration; use --operation encode"
            )
        if self.top_k is not None and "classify" not in self._parts:
            raise CannotScore(f"--top-k limits probabilities, and {self.name} returns none: leave it out")
        if self.sets is not None:
            self._require_sets(self.sets)
        if self.maps:
            self._require_map()
        if self.has_regions:
            self._require_regions()
        if self.false_alarm_rate is None:
            return
        if "anomaly" not in self._parts or bundle.scorer is None:
            raise CannotScore(f"--false-alarm-rate is for anomaly scores, and {self.name} returns none: leave it out")
        try:
            bundle.scorer.threshold(self.false_alarm_rate)
        except ValueError as error:
            raise CannotScore(f"--false-alarm-rate {self.false_alarm_rate}: {error}") from None

    @property
    def _parts(self) -> list[str]:
        available = self.bundle.operations
        if self.name == "predict":
            return [part for part in ("classify", "anomaly") if part in available]
        return [self.name]

    @property
    def has_regions(self) -> bool:
        return "anomaly" in self._parts and "regions" in self.bundle.operations

    @property
    def needs_sizes(self) -> bool:
        return self.maps or self.has_regions

    def _require_sets(self, options: SetOptions) -> None:
        if "classify" not in self._parts:
            raise CannotScore(f"--coverage is of sets of labels, and {self.name} returns none: leave it out")
        self.bundle.require("sets")
        assert self.bundle.sets is not None
        try:
            self.bundle.sets.require(options)
        except ValueError as error:
            raise CannotScore(f"--coverage: {error}") from None

    def _require_map(self) -> None:
        if self.name not in _WITH_MAPS:
            raise CannotScore(
                f"--maps shows where an image is anomalous, and {self.name} does not say: "
                f"use --operation {' or '.join(_WITH_MAPS)}, or leave it out"
            )
        if map_output(self.bundle) != ANOMALY_MAP and "reconstruct" not in self.bundle.operations:
            raise CannotScore(
                f"--maps: model {self.bundle.name}@{self.bundle.version} has no map, as it has neither a memory of "
                "patches nor a decoder: leave it out, or use another --model"
            )

    def _require_regions(self) -> None:
        assert self.bundle.peaks is not None
        assert self.bundle.manifest.anomaly is not None
        try:
            threshold_at(self.bundle.peaks, self.false_alarm_rate or self.bundle.manifest.anomaly.false_alarm_rate)
        except ValueError as error:
            raise CannotScore(f"regions: {error}; use another --false-alarm-rate") from None

    def score(self, paths: Sequence[str], images: np.ndarray, sizes: Sequence[Size]) -> list[Result]:
        """`images` (n, H, W, C) uint8 → n rows: path, model, and the fields of the API's result; with `maps` n maps.

        `sizes` are those of the upright pictures, and may be empty unless `needs_sizes`.
        """
        needed = {OUTPUT_OF[part] for part in self._parts}
        needed |= {ANOMALY_MAP} if self.has_regions else set()
        needed |= {map_output(self.bundle)} if self.maps else set()
        if self.bundle.tiled:
            outputs = answer_pictures(self.bundle, images, frozenset(needed))
        else:
            [outputs] = answer(self.bundle, [OutputRequest(images, frozenset(needed))])
        model = {"name": self.bundle.name, "version": self.bundle.version, "digest": self.bundle.digest}
        rows: list[Fields] = [{"path": path, "model": model} for path in paths]
        for part in self._parts:
            merge(rows, self._results(part, outputs))
        if self.sets is not None:
            made = {"sets": f"{self.sets.by} at {self.sets.coverage:g}{', of each class' * self.sets.conditional}"}
            merge(rows, [each | made for each in set_fields(self.bundle, images, outputs, self.sets)])
        if self.has_regions:
            merge(rows, region_fields(self.bundle, outputs, sizes, self.false_alarm_rate))
        if not self.maps:
            return [Result(row) for row in rows]
        merge(rows, [{"map": file_name(path)} for path in paths])
        drawn = zip(rows, heatmaps(self.bundle, images, outputs), sizes, strict=True)
        return [Result(row, Map(heatmap, size)) for row, heatmap, size in drawn]

    def example(self) -> Fields:
        """A row for a black image: it shows the columns that every row has."""
        height, width, channels = self.bundle.manifest.input.shape
        [result] = self.score([""], np.zeros((1, height, width, channels), np.uint8), [Size(width, height)])
        return result.row

    def _results(self, part: str, outputs: Outputs) -> list[Fields]:
        if part == "classify":
            return classify_fields(self.bundle, outputs, self.top_k)
        if part == "encode":
            return encode_fields(outputs)
        scores = anomaly_scores(self.bundle, outputs, self.false_alarm_rate)
        fields = [_without_none(anomaly_fields(score)) for score in scores]
        if self.name == "predict":
            merge(fields, [in_domain_fields(score) for score in scores])
        return fields


def _without_none(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}
