"""The reference for drift: embeddings, confidences and scores of some held-out images. No torch."""

import numpy as np

from app.bundle import Bundle
from app.bundle.drift import BASIS, CONFIDENCES, EMBEDDINGS, FEWEST, REFERENCES, SCORES, StreamScores
from app.bundle.manifest import Classifier
from app.bundle.scoring import confidences, label_probabilities
from training.data.imageset import ImageSet
from training.measure.outputs import outputs_of


def reference(
    bundle: Bundle, held_out: ImageSet, classifier: Classifier | None, new: bool = True
) -> dict[str, np.ndarray]:
    """Arrays of the reference file; empty for fewer images than drift needs. `classifier` is the calibrated one.

    `new`: the encoder has not learnt from the images. Otherwise no martingale can be made of them: it would notice, in
    the end, that the images of the service are new.
    """
    if len(held_out) < FEWEST:
        return {}
    chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:REFERENCES])
    outputs = outputs_of(bundle, held_out if new else held_out.take(chosen), "drift", ("embedding", "logits"))
    embeddings = outputs.encoded["embedding"].astype(np.float32)
    own = chosen if new else slice(None)
    arrays = {EMBEDDINGS: embeddings[own]}
    if outputs.logits is not None and classifier is not None:
        rows = label_probabilities(outputs.logits[own], classifier)
        arrays[CONFIDENCES] = confidences(rows, classifier).astype(np.float32)
    if new:
        basis = StreamScores.basis_of(arrays[EMBEDDINGS])
        others = np.delete(embeddings, chosen[StreamScores.rows(len(chosen))], axis=0)
        scores = StreamScores(arrays[EMBEDDINGS], basis).of(others)
        arrays |= {BASIS: basis, SCORES: scores.astype(np.float32)}
    return arrays
