"""What prediction sets need: held-out images with the probabilities of their labels. No torch."""

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Classifier
from app.bundle.scoring import label_probabilities
from app.bundle.sets import arrays_of
from training.data.imageset import ImageSet
from training.measure.outputs import outputs_of


def reference(bundle: Bundle, held_out: ImageSet, classifier: Classifier | None) -> dict[str, np.ndarray]:
    """Arrays of the reference file; empty without labels. `classifier` is the calibrated one.

    Nothing may have been fitted on the images, and no choice made by their labels: the temperature comes from others.
    """
    if classifier is None or classifier.thresholds is not None or held_out.classes != classifier.labels:
        return {}
    if not len(held_out.labels) or held_out.several is not None:
        return {}
    logits = outputs_of(bundle, held_out, "prediction sets", ("logits",)).logits
    assert logits is not None  # there is a classifier
    return arrays_of(label_probabilities(logits, classifier), held_out.labels)
