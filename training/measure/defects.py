"""What a bundle makes of images with defects: of all of them, and of each kind, against all sound images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Metric
from training.data.imageset import ImageSet
from training.measure import localisation
from training.measure.detection import Measured, recall, separation
from training.measure.maps import has_maps, maps_of
from training.measure.tiled import Maps
from training.progress import say

TITLES = {
    "image_auroc": "image AUROC",
    "average_precision": "average precision",
    "best_f1": "best F1",
    "recall_at_threshold": "recall",
    "pixel_auroc": "pixel AUROC",
    "aupro_30": "AUPRO 30 %",
    "aupro_5": "AUPRO 5 %",
}
_HOW = {
    "average_precision": "{defects} images with defects among {images}",
    "recall_at_threshold": "the share called anomalous, at a stated rate of {rate:g}",
    "pixel_auroc": "maps against masks, at the input's size",
    "aupro_30": "overlap per region, to 30 % of false positives",
    "aupro_5": "overlap per region, to 5 % of false positives",
}


@dataclass(frozen=True)
class Group:
    """The defects of one kind, or all of them."""

    name: str
    images: int
    masks: int
    measures: dict[str, Measured]


@dataclass(frozen=True)
class Defects:
    groups: Sequence[Group]  # all defects first, then each kind
    sound: int  # images
    maps: np.ndarray | Maps | None  # (N, H, W) of the whole set, where there are masks; see training.measure.maps

    def maps_at(self, images: np.ndarray) -> np.ndarray | Maps | None:
        return None if self.maps is None else self.maps[images]


def measure(bundle: Bundle, data: ImageSet, scores: np.ndarray | None) -> Defects | None:
    """None if the set has no images with defects, or the bundle no score."""
    defective = data.defective
    if scores is None or bundle.manifest.anomaly is None or not defective.any():
        return None
    maps = counts = None
    if data.masks and has_maps(bundle):
        maps = maps_of(bundle, data, "maps")
        counts = localisation.overlaps(data, maps, bundle.manifest.input)
    elif data.masks:
        say(f"note: {bundle.name} has no maps to compare with the masks: only the scores are measured")
    threshold = bundle.manifest.anomaly.threshold
    chosen = {"all": defective}
    if len(data.kinds) > 1:
        chosen |= {kind: data.labels == data.classes.index(kind) for kind in data.kinds}
    groups = []
    for name, own in chosen.items():
        measures = of_scores(scores[~defective], scores[own], threshold)
        masked = 0
        if counts is not None:
            kept = counts.of(own | ~defective)
            masked = int(own[counts.index].sum())
            if kept.can_be_measured:
                measures |= localisation.measures(kept)
        groups.append(Group(name, int(own.sum()), masked, measures))
    return Defects(groups, int((~defective).sum()), maps)


def of_sets(normal: np.ndarray, anomalies: ImageSet, scores: np.ndarray, threshold: float) -> Defects:
    """From the scores of normal images, and of a set that has anomalous ones alone."""
    chosen = {"all": np.ones(len(anomalies), bool)}
    if len(np.unique(anomalies.labels)) > 1:
        chosen |= {anomalies.classes[label]: anomalies.labels == label for label in np.unique(anomalies.labels)}
    groups = [Group(name, int(own.sum()), 0, of_scores(normal, scores[own], threshold)) for name, own in chosen.items()]
    return Defects(groups, len(normal), None)


def of_scores(normal: np.ndarray, other: np.ndarray, threshold: float) -> dict[str, Measured]:
    return separation(normal, other, threshold) if len(normal) else recall(other, threshold)


def metrics(found: Defects, how: str, rate: float) -> list[Metric]:
    """Of all defects; `how` of each has its interval, and its value for every kind."""
    whole, *kinds = found.groups
    made = []
    for name, measured in whole.measures.items():
        images = found.sound + whole.images if name != "recall_at_threshold" else whole.images
        words = [how, _HOW.get(name, "").format(defects=whole.images, images=images, rate=rate)]
        words.append(f"95 % {measured.low:.4f} to {measured.high:.4f}")
        words += [f"{each.name} {each.measures[name].value:.4f}" for each in kinds if name in each.measures]
        made.append(Metric(name=name, value=measured.value, images=images, how="; ".join(filter(None, words))))
    return made


def table(found: Defects, rate: float) -> list[str]:
    """A block for each kind: the values, and the ends of their intervals."""
    names = [name for name in TITLES if any(name in group.measures for group in found.groups)]
    titles = [f"recall at {rate:.2%}" if name == "recall_at_threshold" else TITLES[name] for name in names]
    rows = []
    for group in found.groups:
        title = f"{group.name} ({group.images:,})"
        for head, end in ((title, 0), ("  95 % from", 1), ("  to", 2)):
            cells = [f"{group.measures[name][end]:.4f}" if name in group.measures else "" for name in names]
            rows.append((head, cells))
    width = max(len(head) for head, _ in [("defects", []), *rows])
    lines = [f"{'defects':{width}}" + "".join(f"  {title}" for title in titles)]
    for head, cells in rows:
        lines.append(
            f"{head:{width}}" + "".join(f"  {cell:>{len(title)}}" for cell, title in zip(cells, titles, strict=True))
        )
    return [line.rstrip() for line in lines]
