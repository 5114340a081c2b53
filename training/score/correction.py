"""A correction of a head: logits that are added to its own, linear in what it reads. No torch.

It is fitted in the codes of training/score/codes.py, by the penalised likelihood whose mode without data is the head as
it is; the graph adds one matrix product to the head. A second correction takes the place of the first, and holds both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, checker, helper, load_from_string, numpy_helper

from app.bundle.manifest import Graph
from app.bundle.scoring import probabilities
from training.errors import TrainingError
from training.score.codes import Codes, Part

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
_STEPS = 300
_FOLDS = 3
_FREE = 1e-2  # of the penalty: on biases
_WEIGHT, _BIAS, _ADDED, _BEFORE = "correction.weight", "correction.bias", "correction", "uncorrected"


@dataclass(frozen=True)
class Correction:
    """(N, K) codes → (N, labels) to be added to logits."""

    weight: np.ndarray  # (K, labels)
    bias: np.ndarray  # (labels,)

    def logits(self, part: Part) -> np.ndarray:
        return np.asarray(part.logits + part.codes @ self.weight + self.bias)


def fit(feedback: Part, known: Part, penalty: float) -> Correction:
    """The images of the training part together count as much as those of the feedback, so that they are not forgotten.

    By Nesterov's method, in the metric of a bound on the curvature (Böhning 1992), as directions differ in spread.
    """
    scale = max(float(known.codes[:, 0].std()), 1e-12)
    z = np.concatenate([feedback.codes, known.codes]).astype(np.float64) / scale
    z = np.column_stack([z, np.ones(len(z))])
    base = np.concatenate([feedback.logits, known.logits]).astype(np.float64)
    truth = np.eye(base.shape[1])[np.concatenate([feedback.labels, known.labels])]
    share = np.repeat([0.5 / len(feedback), 0.5 / len(known)], [len(feedback), len(known)])[:, None]
    ridge = np.full((z.shape[1], 1), penalty)
    ridge[-1] *= _FREE
    step = np.linalg.inv(0.5 * (z * share).T @ z + np.diag(ridge[:, 0]))
    found = ahead = np.zeros((z.shape[1], base.shape[1]))
    momentum = 1.0
    for _ in range(_STEPS):
        residual = (probabilities(base + z @ ahead, 1.0) - truth) * share
        after = ahead - step @ (z.T @ residual + ridge * ahead)
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        found, ahead, momentum = after, after + (momentum - 1) / grown * (after - found), grown
    return Correction((found[:-1] / scale).astype(np.float32), found[-1].astype(np.float32))


def best_penalty(feedback: Part, known: Part, seed: int = 0) -> float:
    """Of PENALTIES the one with the least loss on feedback that is left out, fold by fold."""
    numbers = np.random.default_rng(seed).permutation(len(feedback)) % _FOLDS
    losses = []
    for penalty in PENALTIES:
        loss = 0.0
        for fold in range(_FOLDS):
            out = feedback.take(np.flatnonzero(numbers == fold))
            rows = probabilities(fit(feedback.take(np.flatnonzero(numbers != fold)), known, penalty).logits(out), 1.0)
            loss -= float(np.log(rows[np.arange(len(out)), out.labels] + 1e-12).sum())
        losses.append(loss)
    return PENALTIES[int(np.argmin(losses))]


def with_correction(head: bytes, stated: Graph, codes: Codes, correction: Correction) -> bytes:
    """The head's graph with the correction, folded to what the head reads."""
    model = load_from_string(head)
    weight = codes.basis @ correction.weight  # (D, labels)
    bias = correction.bias - codes.mean @ weight
    arrays = _arrays(model)
    if _WEIGHT in arrays:
        weight, bias = weight + arrays[_WEIGHT], bias + arrays[_BIAS]
        kept = [each for each in model.graph.initializer if each.name not in (_WEIGHT, _BIAS)]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    else:
        logits = stated.outputs[0].name
        makers = [node for node in model.graph.node if logits in node.output]
        if len(makers) != 1 or any(logits in node.input for node in model.graph.node):
            raise TrainingError(f"{stated.file}: {logits} is not the output of one node: this head cannot be corrected")
        makers[0].output[list(makers[0].output).index(logits)] = _BEFORE
        model.graph.node.extend(
            [
                helper.make_node("Gemm", [stated.input.name, _WEIGHT, _BIAS], [_ADDED]),
                helper.make_node("Add", [_BEFORE, _ADDED], [logits]),
            ]
        )
    for name, array in ((_WEIGHT, weight), (_BIAS, bias)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32, "C"), name))
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def corrected(head: bytes, codes: Codes) -> Codes:
    """The codes with the logits of the head as it is now: those in the file are of the head that was exported."""
    arrays = _arrays(load_from_string(head))
    if _WEIGHT not in arrays:
        return codes
    bias = codes.mean @ arrays[_WEIGHT] + arrays[_BIAS]
    earlier = Correction(codes.basis.T @ arrays[_WEIGHT], bias)
    parts = (Part(part.codes, earlier.logits(part), part.labels) for part in (codes.train, codes.held_out))
    return Codes(codes.mean, codes.basis, *parts)


def _arrays(model: ModelProto) -> dict[str, np.ndarray]:
    wanted: Sequence[str] = (_WEIGHT, _BIAS)
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer if each.name in wanted}
