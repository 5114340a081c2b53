"""An operation bound to a bundle and its options: images → rows of results."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle.bundle import Bundle
from app.errors import CannotScore
from app.inference.answer import OutputRequest, Outputs, answer
from app.inference.results import (
    OUTPUT_OF,
    Fields,
    anomaly_fields,
    anomaly_scores,
    classify_fields,
    encode_fields,
    in_domain_fields,
    merge,
)

OPERATIONS = ("predict", "classify", "anomaly", "encode")


@dataclass(frozen=True, slots=True)
class BoundOperation:
    """`predict` is classify and anomaly in one pass, where the model has both: the API's without the embedding."""

    bundle: Bundle
    name: str
    top_k: int | None
    false_alarm_rate: float | None

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

    def rows(self, paths: Sequence[str], images: np.ndarray) -> list[Fields]:
        """`images` (n, H, W, C) uint8 → n rows: path, model, and the fields of the API's result."""
        [outputs] = answer(self.bundle, [OutputRequest(images, frozenset(OUTPUT_OF[part] for part in self._parts))])
        model = {"name": self.bundle.name, "version": self.bundle.version, "digest": self.bundle.digest}
        rows: list[Fields] = [{"path": path, "model": model} for path in paths]
        for part in self._parts:
            merge(rows, self._results(part, outputs))
        return rows

    def example(self) -> Fields:
        """A row for a black image: it shows the columns that every row has."""
        [row] = self.rows([""], np.zeros((1, *self.bundle.manifest.input.shape), np.uint8))
        return row

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
