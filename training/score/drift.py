"""The reference for drift: embeddings and confidences of some held-out images. No torch."""

import numpy as np

from app.bundle import Bundle
from app.bundle.drift import CONFIDENCES, EMBEDDINGS, FEWEST, REFERENCES
from app.bundle.scoring import probabilities
from training.data.imageset import ImageSet
from training.measure.outputs import outputs_of


def reference(bundle: Bundle, held_out: ImageSet, temperature: float | None) -> dict[str, np.ndarray]:
    """Arrays of the reference file; empty for fewer images than drift needs. `temperature` is the head's."""
    if len(held_out) < FEWEST:
        return {}
    chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:REFERENCES])
    outputs = outputs_of(bundle, held_out.take(chosen), "drift", ("embedding", "logits"))
    arrays = {EMBEDDINGS: outputs.encoded["embedding"].astype(np.float32)}
    if outputs.logits is not None and temperature is not None:
        arrays[CONFIDENCES] = probabilities(outputs.logits, temperature).max(axis=1).astype(np.float32)
    return arrays
