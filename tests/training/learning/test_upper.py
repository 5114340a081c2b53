"""What frozen blocks gave once, and the blocks that thaw on it, are together the network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from training.data.imageset import ImageSet
from training.learning.gradual import gradual
from training.learning.upper import Upper
from training.learning.workshop import Workshop, open_workshop
from training.networks.autoencoder import build
from training.networks.encoded import Backbone
from training.recipe import Augment, GradualMode, Network, Recipe


def drawn(count: int, seed: int) -> ImageSet:
    """Three classes of stripes in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    across = np.sin(np.arange(32)[None, :] * (labels[:, None] + 1) * 0.4)[:, None, :, None]
    noise = rng.normal(size=(count, 32, 32, 3))
    return ImageSet((127 + 60 * across + 20 * noise).clip(0, 255).astype(np.uint8), labels, ("a", "b", "c"))


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    """A ResNet-18 whose norms have statistics of their own."""
    recipe = Recipe(name="x", title="", source="a", target="a", network=Network(backbone="resnet18", weights=None))
    made = open_workshop(recipe, (32, 32, 3), tmp_path, untrained=True)
    made.net.encoder.train()
    with torch.no_grad():
        made.net.encode(made.unit(drawn(32, 1).images))
    made.net.encoder.eval()
    return made


@pytest.mark.parametrize("reads", ["embedding", "features"])
@pytest.mark.parametrize(("kind", "start"), [("resnet18", 4), ("resnet18", 2), ("efficientnet-lite0", 3)])
def test_below_and_above_give_what_the_whole_gives(
    shop: Workshop, reads: Literal["embedding", "features"], kind: str, start: int
) -> None:
    if kind != "resnet18":
        shop = replace(shop, net=build(Network(backbone=kind, weights=None), (32, 32, 3)))  # type: ignore[arg-type]
        shop.net.encoder.eval()
    train, held, batch = drawn(9, 2), drawn(6, 3), torch.tensor([4, 0, 5])
    upper = Upper(shop, start, GradualMode(reads=reads, thaw=1), train, held)
    with torch.no_grad():
        for data, given in ((train, upper.view), (held, upper.validation)):
            whole = shop.net.read(shop.unit(data.images[batch.numpy()]), reads)
            torch.testing.assert_close(upper.read(given(batch)), whole, rtol=1e-3, atol=1e-4)


def learnt(shop: Workshop, folder: Path, mode: GradualMode) -> list[float]:
    torch.manual_seed(0)
    gradual(shop.kept_in(folder), drawn(60, 2), drawn(12, 3), mode)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_frozen_blocks_run_once_for_each_image_and_learning_is_the_same(shop: Workshop, tmp_path: Path) -> None:
    runs, encoder = dict[str, int](), shop.net.encoder
    assert isinstance(encoder, Backbone)
    encoder.get_submodule("layer1").register_forward_hook(lambda *_: runs.update(below=runs.get("below", 0) + 1))
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    mode = GradualMode(reads="embedding", thaw=1, epochs=4, batch=20, rate=1e-3, slower_below=0.5)
    cached = learnt(shop, _folder(tmp_path / "cached"), mode)
    ran = runs["below"]
    after = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert {name.split(".")[0] for name in after if not torch.equal(after[name], weights[name])} == {"layer4"}
    encoder.load_state_dict(weights)
    # A flip that is drawn anew in every epoch: the frozen blocks run in every step.
    new = learnt(shop, _folder(tmp_path / "new"), mode.model_copy(update={"augment": Augment(flip="across")}))
    assert runs["below"] - ran >= 4 * (60 // 20) > ran
    encoder.load_state_dict(weights)
    # So small a change that it changes nothing, and yet asks for new images.
    plain = learnt(shop, _folder(tmp_path / "plain"), mode.model_copy(update={"augment": Augment(light=1e-9)}))
    assert cached[0] == pytest.approx(plain[0], rel=1e-3)  # of the same order; the next ones differ
    assert cached[-1] < cached[0]
    assert len(new) == len(plain) == 4


def test_views_are_learnt_beside_the_images(shop: Workshop, tmp_path: Path) -> None:
    mode = GradualMode(reads="embedding", thaw=1, epochs=2, batch=20, augment=Augment(flip="across"), views=2)
    upper = Upper(shop, 4, mode, drawn(9, 2), drawn(3, 3))
    torch.manual_seed(0)
    batch = torch.arange(9)
    with torch.no_grad():
        read = [upper.read(upper.view(batch)) for _ in range(20)]
    assert not all(torch.equal(read[0], other) for other in read)
    assert len(learnt(shop, _folder(tmp_path / "views"), mode)) == 2


def test_mixup_mixes_what_the_frozen_blocks_gave(shop: Workshop, tmp_path: Path) -> None:
    runs = list[int]()
    shop.net.encoder.get_submodule("layer1").register_forward_hook(lambda *_: runs.append(1))
    mode = GradualMode(
        reads="embedding", thaw=1, epochs=3, batch=20, augment=Augment(flip="across"), views=2, begin="linear"
    )
    plain = learnt(shop, _folder(tmp_path / "plain"), mode)
    first = len(runs)
    mixed = learnt(shop, _folder(tmp_path / "mixed"), mode.model_copy(update={"mixup": 1.0}))
    assert len(runs) - first == first, "once for each view, as without"
    assert mixed[0] > plain[0] + 0.1, "shares of two classes are not told apart"


def test_a_head_that_begins_linear_needs_no_epoch_alone(shop: Workshop, tmp_path: Path) -> None:
    """The first step's loss is already what logistic regression ends at, and the top block learns from then on."""
    mode = GradualMode(reads="embedding", thaw=1, epochs=1, batch=60, rate=1e-5)
    encoder = shop.net.encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    [random] = learnt(shop, _folder(tmp_path / "random"), mode)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items()), "the head alone"
    [linear] = learnt(shop, _folder(tmp_path / "linear"), mode.model_copy(update={"begin": "linear"}))
    assert linear < random / 2
    learning = {
        name for name, _ in encoder.named_parameters() if not torch.equal(encoder.state_dict()[name], before[name])
    }
    assert learning
    assert {name.split(".")[0] for name in learning} == {"layer4"}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
