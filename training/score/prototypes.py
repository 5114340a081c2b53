"""Classification by the nearest class mean: closed form, from a few images of each class. No torch.

    cosine        10 · cos(x, μₖ)
    mahalanobis   μₖᵀ Σ⁻¹ x - ½ μₖᵀ Σ⁻¹ μₖ: the part of -½ (x - μₖ)ᵀ Σ⁻¹ (x - μₖ) that differs between classes, Σ their
                  common covariance; scaled to the size of the cosine's

x and the means μₖ are taken relative to the mean of the means. Where x joins several maps, each map has equal weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import helper

from app.bundle.manifest import Graph
from training.score.onnx_model import serialised

Distance = Literal["cosine", "mahalanobis"]
SCALE = 10.0  # of the logits, before the temperature
PARTS = 100  # folds of the left-out predictions, at most
_TINY = 1e-12  # in place of a length of 0


@dataclass(frozen=True)
class Prototypes:
    """(N, D) points → (N, classes) logits: (x - centre) · scale, normalised if `directions`, then · weight + bias."""

    centre: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    weight: np.ndarray  # (D, classes)
    bias: np.ndarray  # (classes,)
    directions: bool

    @property
    def linear(self) -> np.ndarray | None:
        """(D, classes) that (x - centre) is multiplied with; None for directions, which are not linear in x."""
        return None if self.directions else self.scale[:, None] * self.weight

    def logits(self, points: np.ndarray) -> np.ndarray:
        x = (points - self.centre) * self.scale
        return np.asarray((_directions(x) if self.directions else x) @ self.weight + self.bias)


def fit(points: np.ndarray, labels: np.ndarray, distance: Distance, blocks: Sequence[int] = ()) -> Prototypes:
    """(N, D) points, (N,) labels, each from 0 on at least once; `blocks` are the sizes of the maps that D joins."""
    points = points.astype(np.float64)
    means = np.stack([points[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)])
    centre = means.mean(axis=0)
    sizes = blocks or (points.shape[1],)
    scale = np.repeat(block_scales(points - centre, sizes), sizes)
    x, means = (points - centre) * scale, (means - centre) * scale
    if distance == "cosine":
        weight, bias = SCALE * _directions(means).T, np.zeros(len(means))
    else:
        weight = _by_spread(x - means[labels], means.T)
        own = (means.T * weight).sum(axis=0)
        alike = SCALE / max(float(own.mean()), _TINY)
        weight, bias = weight * alike, -0.5 * own * alike
    single = np.float32
    directions = distance == "cosine"
    return Prototypes(
        centre=centre.astype(single),
        scale=scale.astype(single),
        weight=weight.astype(single),
        bias=bias.astype(single),
        directions=directions,
    )


def left_out(points: np.ndarray, labels: np.ndarray, distance: Distance, blocks: Sequence[int] = ()) -> np.ndarray:
    """(N, classes) logits of each point by the prototypes of the others; with more than PARTS points, fold by fold.

    Every class needs two points.
    """
    logits = np.zeros((len(points), int(labels.max()) + 1), np.float32)
    by_class = np.argsort(labels, kind="stable")  # dealt out, so that no fold holds all of a class
    parts = min(PARTS, len(points))
    for part in range(parts):
        out = by_class[part::parts]
        kept = np.delete(np.arange(len(points)), out)
        logits[out] = fit(points[kept], labels[kept], distance, blocks).logits(points[out])
    return logits


def to_onnx(prototypes: Prototypes, graph: Graph, opset: int) -> bytes:
    """The classifier as an ONNX graph with the tensor names of `graph`."""
    points, logits = graph.input, graph.outputs[0]
    weights = {
        "centre": prototypes.centre,
        "scale": prototypes.scale,
        "weight": prototypes.weight,
        "bias": prototypes.bias,
    }
    nodes = [
        helper.make_node("Sub", [points.name, "centre"], ["moved"]),
        helper.make_node("Mul", ["moved", "scale"], ["x"]),
    ]
    x = "x"
    if prototypes.directions:
        weights |= {"ones": np.ones((len(prototypes.centre), 1), np.float32), "tiny": np.array(_TINY, np.float32)}
        nodes += [
            helper.make_node("Mul", ["x", "x"], ["squares"]),
            helper.make_node("MatMul", ["squares", "ones"], ["sum"]),
            helper.make_node("Sqrt", ["sum"], ["length"]),
            helper.make_node("Max", ["length", "tiny"], ["divisor"]),
            helper.make_node("Div", ["x", "divisor"], ["direction"]),
        ]
        x = "direction"
    nodes.append(helper.make_node("Gemm", [x, "weight", "bias"], [logits.name]))
    return serialised("prototypes", nodes, weights, stated=graph, opset=opset)


def block_scales(centred: Any, blocks: Sequence[int]) -> list[Any]:
    """(N, D) relative to the centre → a factor per block that brings its root mean square length to 1.

    The factor of a block without variance is 0. An array gives numbers, a torch tensor gives tensors with gradients:
    episodes train by the rule that fits prototypes.
    """
    scales, start = [], 0
    for size in blocks:
        part = centred[:, start : start + size]
        length = (part * part).sum(1).mean() ** 0.5
        scales.append(1 / length if length > _TINY else 0.0)
        start += size
    return scales


def _directions(points: np.ndarray) -> np.ndarray:
    return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), _TINY))


def _by_spread(centred: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Σ⁻¹ · columns, with Σ the covariance of the (N, D) centred points, shrunk towards a multiple of I.

    By how much is Ledoit and Wolf's (2004). Σ = a I + b XᵀX is formed only where N is not the smaller of the two: D may
    be thousands and N a dozen.
    """
    count, size = centred.shape
    lengths = np.square(centred).sum(axis=1)  # (N,) squared: the diagonal of XXᵀ
    many = count >= size
    gram = centred.T @ centred if many else centred @ centred.T  # (D, D) or (N, N), of the same norm
    sphere = lengths.sum() / count / size
    squared = np.square(gram).sum() / count**2  # of the covariance's entries
    apart = squared / size - sphere**2
    noise = (np.square(lengths).sum() / count - squared) / size / count
    share = min(1.0, noise / apart) if apart > 0 else 1.0
    a, b = max(share * sphere, _TINY), (1 - share) / count
    if many:
        return np.asarray(np.linalg.solve(a * np.eye(size) + b * gram, columns))
    inner = np.eye(count) + (b / a) * gram
    return np.asarray((columns - (b / a) * centred.T @ np.linalg.solve(inner, centred @ columns)) / a)
