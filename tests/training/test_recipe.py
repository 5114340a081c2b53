from pathlib import Path

import pytest

from training import recipe
from training.errors import TrainingError


@pytest.mark.parametrize("name", recipe.names())
def test_our_recipes_load_and_give_a_reason_for_every_number(name: str) -> None:
    loaded = recipe.load(name, [])
    assert loaded.title
    text = (recipe.FOLDER / f"{name}.toml").read_text()
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if value.strip()[:1].isdigit() and key.strip() != "batch":
            assert "#" in line, f"{name}: {line}"


def test_a_change_overrides_and_a_bare_word_is_a_string() -> None:
    changed = recipe.load("seed", ["pretrain.epochs=3", "seed=7", "name=other", "input.resize=pad"])
    assert (changed.pretrain.epochs, changed.seed, changed.name, changed.input.resize) == (3, 7, "other", "pad")
    assert changed.pretrain.batch == recipe.Stage().batch


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntitle = "t"\nsource = "mnist"\ntarget = "images"\n')
    assert recipe.load(str(path), []).name == "mine"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("pretrain.epoch=3", "pretrain.epoch: Extra inputs"),
        ("pretrain.epochs=-1", "pretrain.epochs: Input should be greater than or equal to 0"),
        ("network.kind=alexnet", "network.kind"),
        ("network.variational=true", "variational is for conv and dense"),
        ("network.weights=x.pth", "weights are for resnet18"),
        ("objective.reconstruction=0", "nothing is left to learn"),
        ("objective.contrast=1", "two views of an image are alike without pretrain.augment"),
        ("pretrain.epochs=0", "nothing is learnt before; set network.weights"),
        ("epochs", "write key=value"),
        ("name=Bad Name", "name: String should match"),
        ("=3", "write key=value"),
        ("name.x=3", "name is not a table"),
    ],
)
def test_a_bad_change_is_named(change: str, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        recipe.load("seed", [change])


def test_only_squares_are_transposed() -> None:
    assert recipe.load("seed", ["pretrain.augment.flip=any"]).pretrain.augment.flip == "any"
    for stage in ("pretrain", "transfer"):
        with pytest.raises(TrainingError, match="flip=any is for squares, not for 28 by 32 pixels"):
            recipe.load("seed", ["transfer.mode=full", f"{stage}.augment.flip=any", "input.width=32"])
    with pytest.raises(TrainingError, match="symmetries is for squares, not for 28 by 32 pixels"):
        recipe.load("episodic", ["input.width=32"])


def test_what_is_no_recipe_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"ours are .*seed"):
        recipe.load("sead", [])
    with pytest.raises(TrainingError, match="File name too long"):
        recipe.load("a" * 300, [])
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(TrainingError, match=r"bad\.toml"):
        recipe.load(str(tmp_path / "bad.toml"), [])
    (tmp_path / "empty.toml").touch()
    with pytest.raises(TrainingError, match="name: Field required"):
        recipe.load(str(tmp_path / "empty.toml"), [])


def test_a_distance_that_is_not_known_is_named() -> None:
    assert recipe.tensors(("reconstruction", "embedding.local", "features.residual")) == {"embedding", "features"}
    for wrong in ("likelihood", "embedding", "pixels.neighbours", "features.distance", "embedding.reconstruction"):
        with pytest.raises(ValueError, match=f"^{wrong}: reconstruction, or thumbnail, embedding or features"):
            recipe.tensors((wrong,))
