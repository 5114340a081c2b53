"""What a person says of images → records of the spool."""

from collections.abc import Sequence
from hashlib import sha256

from app.bundle.bundle import Bundle
from app.bundle.spool import DEFECT, SOUND, Record, Spool, encoder_of, scorer_of
from app.errors import MalformedRequest, OperationUnavailable
from app.inference.answer import DISTANCES, EMBEDDING, LOGITS, ORDER
from app.inference.predictor import Prediction
from app.inference.recent import Recent


class Feedback:
    """Where feedback goes, and the latest requests that it may be about."""

    def __init__(self, spool: Spool, recent: Recent, keeps_pictures: bool) -> None:
        self.spool, self.recent, self.keeps_pictures = spool, recent, keeps_pictures


def outputs_for(bundle: Bundle) -> frozenset[str]:
    """What the records hold of an image."""
    head = bundle.manifest.graphs.head
    outputs = {EMBEDDING} if head is None else {EMBEDDING, LOGITS, head.input.name}
    return frozenset(outputs if bundle.scorer is None else {*outputs, DISTANCES})


def is_of_anomaly(bundle: Bundle, label: str) -> bool:
    """Whether the label is a verdict on the anomaly score. Raises if the model cannot be told it."""
    classifier = bundle.manifest.classifier
    labels = () if classifier is None or classifier.thresholds is not None else classifier.labels
    verdicts = () if bundle.scorer is None else (SOUND, DEFECT)
    if label in labels:
        return False
    if label in verdicts:
        return True
    if not labels and not verdicts:
        raise OperationUnavailable(
            f"model {bundle.name}@{bundle.version} has neither one label an image nor an anomaly score, so no feedback "
            "can be given"
        )
    raise MalformedRequest(f"label: {label[:100]!r} is none of {', '.join((*labels, *verdicts))}")


def records(
    result: Prediction, label: str, request_id: str, first: int, feedback: Feedback, of_anomaly: bool
) -> list[Record]:
    """One for each image; `first` is the first's index in the request that sent them."""
    bundle, outputs = result.bundle, result.outputs
    predicted = _predicted(result, of_anomaly)
    head = bundle.manifest.graphs.head
    tensors = {EMBEDDING, *(() if head is None else (head.input.name,))}
    return [
        Record(
            request_id=request_id,
            index=first + row,
            model=bundle.name,
            version=bundle.version,
            digest=bundle.digest,
            encoder=encoder_of(bundle.manifest),
            scorer=scorer_of(bundle.manifest),
            image=sha256(file).hexdigest(),
            label=label,
            of_anomaly=of_anomaly,
            predicted=predicted[row],
            tensors={name: outputs[name][row] for name in sorted(tensors)},
            distances=outputs[DISTANCES][row] if DISTANCES in outputs else None,
            picture=file if feedback.keeps_pictures else None,
        )
        for row, file in enumerate(result.files)
    ]


def _predicted(result: Prediction, of_anomaly: bool) -> Sequence[str]:
    bundle = result.bundle
    if of_anomaly:
        assert bundle.scorer is not None  # `is_of_anomaly` has seen it
        scores = bundle.scorer.score_distances(result.outputs[DISTANCES])
        return [DEFECT if score.anomalous else SOUND for score in scores]
    assert bundle.manifest.classifier is not None
    return [bundle.manifest.classifier.labels[order[0]] for order in result.outputs[ORDER]]
