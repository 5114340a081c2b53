"""The reference for drift: embeddings and confidences of some held-out images. No torch."""

import numpy as np

from app.bundle import Bundle
from app.bundle.drift import CONFIDENCES, EMBEDDINGS, FEWEST, REFERENCES
from app.bundle.manifest import Classifier
from app.bundle.scoring import confidences, label_probabilities
from training.data.imageset import ImageSet
from training.measure.outputs import outputs_of


def reference(bundle: Bundle, held_out: ImageSet, classifier: Classifier | None) -> dict[str, np.ndarray]:
    """Arrays of the reference file; empty for fewer images than drift needs. `classifier` is the calibrated one."""
    if len(held_out) < FEWEST:
        return {}
    chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:REFERENCES])
    outputs = outputs_of(bundle, held_out.take(chosen), "drift", ("embedding", "logits"))
    arrays = {EMBEDDINGS: outputs.encoded["embedding"].astype(np.float32)}
    if outputs.logits is not None and classifier is not None:
        rows = label_probabilities(outputs.logits, classifier)
        arrays[CONFIDENCES] = confidences(rows, classifier).astype(np.float32)
    return arrays
