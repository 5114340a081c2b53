"""Heads: (N, size) encoder outputs → (N, labels) logits; linear, or with a hidden layer."""

from collections.abc import Mapping

from torch import Tensor, nn

Head = nn.Linear | nn.Sequential


def make(size: int, labels: int, hidden: int) -> Head:
    """`hidden` units of ReLU in between; 0 is none."""
    if not hidden:
        return nn.Linear(size, labels)
    return nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, labels))


def like(state: Mapping[str, Tensor]) -> Head:
    """A head with the sizes and weights of a state dict."""
    deep = "0.weight" in state
    first, last = (state["0.weight"], state["2.weight"]) if deep else (state["weight"], state["weight"])
    made = make(first.shape[1], last.shape[0], first.shape[0] if deep else 0)
    made.load_state_dict(state)
    return made


def labels_of(head: Head) -> int:
    return _layer(head, -1).out_features


def reading(head: Head) -> nn.Linear:
    """The first layer, which takes the encoder's outputs."""
    return _layer(head, 0)


def _layer(head: Head, place: int) -> nn.Linear:
    found = head if isinstance(head, nn.Linear) else head[place]
    assert isinstance(found, nn.Linear)
    return found
