import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import ROOT

from training import recipe
from training.errors import TrainingError

MANIFESTS = sorted((ROOT / "models").glob("*/*/manifest.json"))


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
    ("change", "message"),
    [
        ("pretrain.epoch=3", "pretrain.epoch: Extra inputs"),
        ("pretrain.epochs=-1", "pretrain.epochs: Input should be greater than or equal to 0"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("seed=1e400", "seed: Input should be a finite number"),
        (f"seed={2**63}", "seed: Input should be less than"),
        ("seed=" + "9" * 5000, "--set seed: the value cannot be read: Exceeds the limit"),
        ("title=" + "[" * 5000, "--set title: the value cannot be read: "),
        ("seed=1\ntitle='x'", "seed: Input should be a valid integer"),
        ("input.height=0", "input.height: Input should be greater than 0"),
        (f"input.height={2**31}", "input.height: Input should be less than"),
        ("pretrain.rate=1e400", "pretrain.rate: Input should be a finite number"),
        ("objective.noise=inf", "objective.noise: Input should be a finite number"),
        ("pretrain.batch=99999999999999999999", "pretrain.batch: Input should be less than"),
        ("pretrain.augment.shift=28", "pretrain.augment.shift=28: must be below the image's side of 28"),
        ("x=…", "x: Extra inputs"),
        ("=", "--set =: write key=value"),
        (".=1", "--set .=1: write key=value"),
        ("pretrain..epochs=1", "--set pretrain..epochs=1: write key=value"),
        ("a.b.c=1", "a: Extra inputs"),
        ("seed.x=1", "seed: Input should be a valid integer"),
        ("network.kind=alexnet", "network.kind"),
        ("network.variational=true", "variational is for conv and dense"),
        ("network.weights=x.pth", "weights are for a backbone, not for conv-seed: set network.backbone"),
        ("network.activation=relu", "activation is for conv and dense, not for conv-seed"),
        ("objective.kl=0.1", "set network.activation=sigmoid, or use objective.l1"),
        ("objective.reconstruction=0", "nothing is left to learn"),
        ("objective.contrast=1", "two views of an image are alike without pretrain.augment"),
        ("pretrain.epochs=0", "nothing is learnt before; set network.weights"),
        ("epochs", "write key=value"),
        ("name=Bad Name", "name: String should match"),
        ("=3", "write key=value"),
        ("name.x=3", "name is not a table"),
    ],
)
def test_a_bad_change_is_named(change: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe.load("seed", [change])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('network={backbone="resnet18"}', "a smaller network learns from a backbone: name that in transfer.teacher"),
        ("pretrain.epochs=0", "nothing is learnt of the teacher; set it above 0, or mode=scratch"),
        ("pretrain.augment={}", "transfer.views: views are alike without pretrain.augment"),
        ("transfer.teacher=alexnet", "transfer.teacher: Input should be 'efficientnet-lite0'"),
    ],
)
def test_a_distillation_that_cannot_be_is_refused(change: str, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        recipe.load("photos-small", [change])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["transfer.thaw=0"], "they are for a backbone of which blocks stay frozen: set thaw, too"),
        (["transfer.cutmix=1"], "cutmix makes new images in every batch: leave out either, or mixup"),
    ],
)
def test_views_are_for_blocks_that_stay_frozen(changes: list[str], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        recipe.load("backbone-thawed", changes)


@pytest.mark.parametrize("name", ["backbone", "backbone-thawed"])
def test_the_literatures_recipes_take_any_backbone_with_its_published_weights(name: str) -> None:
    changed = recipe.load(name, ["network.backbone=efficientnet-lite0"])
    assert (changed.network.backbone, changed.network.weights) == ("efficientnet-lite0", recipe.IMAGENET)
    assert (changed.decoder.epochs, changed.pretrain.epochs, changed.input.channels) == (0, 0, 3)


def test_a_comparison_trains_the_whole_network_by_the_settings_that_belong_there() -> None:
    gradual = recipe.GradualMode(mixup=0.2, freeze_norms=True, thaw=1, epochs=7)
    assert gradual.as_full() == recipe.FullMode(mixup=0.2, freeze_norms=True, epochs=7), "slower_below is gradual's"
    assert gradual.as_scratch() == recipe.ScratchMode(mixup=0.2, epochs=7)
    full = recipe.FullMode(slower_below=0.5)
    assert full.as_full() is full


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


@pytest.mark.parametrize(
    ("mode", "setting", "message"),
    [
        ("head", "way=20", "transfer.way belongs to mode episodic, and the mode is head: leave it out, or set"),
        ("full", "thaw=1", "transfer.thaw belongs to mode gradual, and the mode is full"),
        (
            "scratch",
            "freeze_norms=true",
            "transfer.freeze_norms belongs to modes gradual, full, and the mode is scratch",
        ),
        ("head", "mixup=0.2", "transfer.mixup belongs to modes gradual, full, distil, scratch, and the mode is head"),
        ("full", 'teacher="resnet18"', "transfer.teacher belongs to mode distil, and the mode is full"),
        ("gradual", "views=2", "views are alike without transfer.augment"),
        ("head", 'begin="linear"', "transfer.begin belongs to mode gradual, and the mode is head"),
        ("gradual", "reconstruction=1", "transfer.reconstruction belongs to mode multitask"),
        ("source-only", "adaptation=1", "transfer.adaptation belongs to modes dann, mmd, and the mode is source-only"),
        ("decoder", "smoothing=0.1", "transfer.smoothing belongs to modes head, "),
        ("decoder", "epochs=3", "mode decoder trains the decoder alone; set decoder.epochs, or another transfer.mode"),
        ("head", "wat=20", "transfer.wat: Extra inputs are not permitted"),
        ("haed", "epochs=3", "'haed' found using 'mode' does not match any of the expected tags: 'decoder', 'head'"),
        ("[1]", "epochs=3", "recipe .*: transfer: "),
        ("full", "epochs=0", "recipe .*: transfer.epochs: Input should be greater than 0"),
    ],
)
@pytest.mark.parametrize("given", ["file", "changes"])
def test_a_setting_of_another_mode_is_refused(
    mode: str, setting: str, message: str, given: str, tmp_path: Path
) -> None:
    path, plain = tmp_path / "mine.toml", 'name = "mine"\ntitle = "t"\nsource = "a"\ntarget = "b"\n'
    changes = [f"transfer.mode={mode}", f"transfer.{setting}"]
    if given == "file":
        stated = mode if mode.startswith("[") else f'"{mode}"'
        path.write_text(f"{plain}[transfer]\nmode = {stated}\n{setting}\n")
        changes = []
    else:
        path.write_text(plain)
    with pytest.raises(TrainingError, match=message) as raised:
        recipe.load(str(path), changes)
    assert "Value error" not in str(raised.value)


def test_another_mode_leaves_the_settings_of_the_files_mode_behind() -> None:
    """What both modes have is kept, and what is asked for beside the mode must be its own."""
    changed = recipe.load("episodic", ["transfer.mode=gradual", "transfer.thaw=1"]).transfer
    assert (
        changed.model_dump()
        == recipe.GradualMode(epochs=4, rate=1e-3, thaw=1, augment=recipe.Augment(shift=2)).model_dump()
    )
    assert recipe.load("episodic", ['transfer.mode="decoder"']).transfer == recipe.DecoderMode()
    with pytest.raises(TrainingError, match="way belongs to mode episodic"):
        recipe.load("episodic", ["transfer.mode=full", "transfer.way=5"])
    with pytest.raises(TrainingError, match="with mode head the encoder is frozen"):
        recipe.load("episodic", ["transfer.mode=head"])


@pytest.mark.parametrize("name", recipe.names())
def test_every_line_of_our_recipes_is_in_what_is_loaded(name: str) -> None:
    def holds(loaded: Any, stated: Any) -> bool:
        if isinstance(stated, dict):
            return all(holds(loaded[key], value) for key, value in stated.items())
        return bool(loaded == (tuple(stated) if isinstance(stated, list) else stated))

    stated = tomllib.loads((recipe.FOLDER / f"{name}.toml").read_text())
    assert holds(recipe.load(name, []).model_dump(), stated)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.parent.name)
def test_the_recipe_of_a_committed_bundle_is_read_with_the_same_meaning(path: Path) -> None:
    """Only settings of other modes are missing from what is read, and only defaults are added."""
    text = json.loads(path.read_text())["provenance"]["recipe"]
    stated, loaded = json.loads(text), json.loads(recipe.Recipe.stored(text).model_dump_json())
    kind = recipe.MODES[stated["transfer"]["mode"]]
    other_modes = {name for name in stated["transfer"] if name not in kind.model_fields}
    assert other_modes, "written when a recipe listed the settings of all modes"
    stated["transfer"] = {name: value for name, value in stated["transfer"].items() if name not in other_modes}
    added = recipe.Recipe(name="x", title="", source="", target="", transfer={"mode": stated["transfer"]["mode"]})
    defaults = json.loads(added.model_dump_json())

    def filled(defaults: Any, stated: Any) -> Any:
        if not isinstance(stated, dict):
            return stated
        return {
            **(defaults or {}),
            **{name: filled((defaults or {}).get(name), value) for name, value in stated.items()},
        }

    assert loaded == filled(defaults, stated)


@pytest.mark.parametrize("mode", recipe.MODES)
def test_a_stored_recipe_may_list_what_other_modes_have(mode: str) -> None:
    own = recipe.MODES[mode]().model_dump()
    everything = {name: value for kind in recipe.MODES.values() for name, value in kind().model_dump().items()}
    stated = {"name": "x", "title": "", "source": "a", "target": "b", "transfer": {**everything, "way": 7, **own}}
    if mode == "paste":
        stated |= {"network": {"kind": "unet"}, "decoder": {"epochs": 0}, "anomaly": {"distances": ["patches"]}}
    assert recipe.Recipe.stored(json.dumps(stated)).transfer.model_dump() == own
    assert recipe.Recipe.stored(recipe.Recipe(**{**stated, "transfer": own}).model_dump_json()).transfer.mode == mode
    stated["transfer"]["wat"] = 1
    with pytest.raises(ValidationError, match="wat"):
        recipe.Recipe.stored(json.dumps(stated))


def test_parts_that_do_not_go_together_are_refused() -> None:
    small = recipe.load("seed", []).with_parts(network=recipe.Network(kind="dense"), seed=3)
    assert (small.network.kind, small.seed) == ("dense", 3)
    with pytest.raises(TrainingError, match=r"recipe fashion-mnist-seed: pretrain\.epochs=0: nothing is learnt before"):
        small.with_parts(pretrain=recipe.Pretrain(epochs=0))


@pytest.mark.parametrize("mode", [mode for mode in recipe.MODES if mode != "paste"])
def test_a_variational_code_is_for_modes_that_keep_the_encoder_as_it_was_pretrained(mode: str) -> None:
    """In the others the means move on, or are never trained, and the variances do not go along."""
    if mode in ("head", "linear", "decoder"):
        assert recipe.load("vae", [f"transfer.mode={mode}"]).trains_posterior
        return
    with pytest.raises(TrainingError, match=f"network.variational: transfer.mode={mode} would publish variances"):
        recipe.load("vae", [f"transfer.mode={mode}"])
    plain = recipe.load("vae", [f"transfer.mode={mode}", "network.variational=false"])
    assert not plain.trains_posterior
    before = plain.model_dump_json().replace('"variational":false', '"variational":true')
    assert not recipe.Recipe.stored(before).trains_posterior, "a run of an older Graft, which is read but not believed"


@pytest.mark.parametrize("change", ["objective.beta=0", "objective.reconstruction=0"])
def test_a_variational_code_is_trained_by_both_parts_of_its_bound(change: str) -> None:
    others = ["objective.contrast=1", "pretrain.augment.shift=2"]
    with pytest.raises(TrainingError, match=f"{change}: a variational code is trained by both"):
        recipe.load("vae", [change, *others])
    assert not recipe.load("vae", [change, *others, "network.variational=false"]).trains_posterior


def test_a_single_distance_may_be_written_without_brackets() -> None:
    assert recipe.Score(distances="patches").distances == ("patches",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["anomaly.folds=1"], "one fold leaves none to fit on"),
        (["anomaly.strides=[8]"], "are of the distance patches"),
        (["anomaly.distances=patches", "network.kind=dense"], "dense has none"),
        (["anomaly.folds=5"], "the encoder learns from the images that the folds hold"),
        (["anomaly.folds=5", "transfer.mode=full"], "the encoder learns from the images that the folds hold"),
    ],
)
def test_settings_of_patches_and_folds_that_do_not_fit_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe.load("quick", changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["network.kind=conv"], "network.kind=conv with transfer.mode=paste: .* set network.kind=unet, too"),
        (
            ["transfer.mode=head", "transfer.augment={}"],
            "network.kind=unet with transfer.mode=head: .* set transfer.mode=paste, too",
        ),
        (["network.backbone=resnet18"], "network.kind=resnet18 with transfer.mode=paste"),
        (['anomaly.distances=["patches", "thumbnail.local"]'], "its marks are the score: set anomaly.distances"),
        (["anomaly.strides=[8]"], "anomaly.strides: with transfer.mode=paste no patches are kept: leave it out"),
        (["anomaly.patches=100"], "anomaly.patches: with transfer.mode=paste no patches are kept: leave it out"),
        (["transfer.patience=3"], "with mode paste the last epoch is kept"),
        (["network.stem=8"], "network.stem and network.shortcuts are for kind conv, not for unet"),
        (["transfer.sound=1"], "transfer.sound: Input should be less than 1"),
        (["transfer.views=2"], "transfer.views belongs to modes .*, and the mode is paste"),
        (["network.variational=true"], "variational is for conv and dense, not for unet"),
    ],
)
def test_settings_that_pasting_has_no_use_for_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe.load("inspect-own", changes)


def test_each_fold_has_a_network() -> None:
    assert recipe.load("inspect-own", ["anomaly.folds=4"]).members == 4
    held = recipe.load("inspect-own", ["anomaly.folds=0"])
    assert (held.members, held.transfer.labels, held.transfer.pretrains) == (1, False, False)
    assert recipe.load("inspect", []).members == 1


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_is_read_again_from_the_file_that_it_is_written_to(name: str, tmp_path: Path) -> None:
    settings = ['source=a "b" ü', "split.test=0.3"]
    chosen = recipe.load(name, settings)
    path = tmp_path / "again.toml"
    path.write_text(recipe.to_toml(chosen))
    assert recipe.load(str(path), []) == chosen
