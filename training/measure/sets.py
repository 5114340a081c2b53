"""Whether prediction sets hold the truth as often as they say, and how large they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.scoring import label_probabilities
from app.bundle.sets import SetOptions, shares_of
from training.data.imageset import ImageSet
from training.measure import intervals
from training.measure.outputs import Outputs

COVERAGE = 0.95  # of cards and reports
HEADS = ("class", "images", "in the set", "labels in a set", "in the set, for every class", "labels in a set")


@dataclass(frozen=True)
class SetMeasures:
    """Of the sets of N images."""

    options: SetOptions
    calibrated_on: np.ndarray  # (K,) images of each label
    labels: np.ndarray  # (N,)
    covered: np.ndarray  # (N,) bool: the set holds the truth
    sizes: np.ndarray  # (N,)

    @property
    def expected(self) -> tuple[float, float]:
        """Where 95 % of such coverages lie by chance, in the calibration images and in these."""
        return intervals.coverage(self.options.coverage, int(self.calibrated_on.sum()), len(self.labels))

    def of_class(self, label: int) -> tuple[float, float]:
        """(coverage, mean size); both nan without an image of the class."""
        own = self.labels == label
        return (float(self.covered[own].mean()), float(self.sizes[own].mean())) if own.any() else (np.nan, np.nan)


def measure(bundle: Bundle, data: ImageSet, outputs: Outputs, options: SetOptions) -> SetMeasures | None:
    """None without what sets need, and where the calibration images are too few for the coverage."""
    sets, classifier = bundle.sets, bundle.manifest.classifier
    if sets is None or classifier is None or outputs.logits is None or not len(data.labels):
        return None
    try:
        sets.require(options)
    except ValueError:
        return None
    shares = shares_of(data.images[index] for index in range(len(data))) if options.by == "raps" else None
    members = sets.members(label_probabilities(outputs.logits, classifier), options, shares)
    return SetMeasures(
        options,
        calibrated_on=np.bincount(sets.labels, minlength=len(classifier.labels)),
        labels=data.labels,
        covered=members[np.arange(len(data)), data.labels],
        sizes=members.sum(axis=1),
    )


def by_class(bundle: Bundle, data: ImageSet, outputs: Outputs) -> Iterator[tuple[str, ...]]:
    """Of each class a row under HEADS, at COVERAGE: of sets with one threshold, and with one for every class."""
    found = [measure(bundle, data, outputs, SetOptions(COVERAGE, "lac", conditional)) for conditional in (False, True)]
    classifier = bundle.manifest.classifier
    if found[0] is None or classifier is None:
        return
    for label, name in enumerate(classifier.labels):
        images = int((data.labels == label).sum())
        cells = [_cells(each, label) for each in found]
        yield name, f"{images:,}", *cells[0], *cells[1]


def _cells(measured: SetMeasures | None, label: int) -> tuple[str, str]:
    covered, size = (np.nan, np.nan) if measured is None else measured.of_class(label)
    return ("", "") if np.isnan(covered) else (f"{covered:.2%}", f"{size:.2f}")
