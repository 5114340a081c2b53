"""The served bundles once more, in integers of eight bits: the same weights, ranges taken from images.

python -m benchmarks.integers NAME       # in a process of its own: torch comes with the tools that make them
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from app.bundle import Bundle, load, save
from app.bundle.bundle import CARD_FILE, REPORT_FILE
from app.bundle.manifest import Manifest
from benchmarks.bundles import RESNET, bundle
from benchmarks.home import MODELS, alone
from benchmarks.workloads import photographs
from training.data.imageset import ImageSet
from training.data.read import read_part
from training.data.splits import train_and_held_out
from training.recipe import Recipe

_SETTLED_ANEW = ("schema_version", "golden", "files", "seal", "input", "latent_size", "feature_maps", "graphs")
_OF_ITS_OWN = (CARD_FILE, REPORT_FILE)  # they tell the numbers of the bundle that it is made from
_DRAWN = 64  # photographs that a network of random weights takes its ranges from


def in_integers(name: str) -> Path:
    """models/<name>-int8/<name>/1, made on first use and whenever the bundle has become another.

    Where training.publish.quantise has, remove it.
    """
    home, source = MODELS / f"{name}-int8" / name / "1", bundle(name)
    made_of = home.parents[1] / "made-of.json"
    if not made_of.exists() or made_of.read_bytes() != (source / "manifest.json").read_bytes():
        print(f"making {name} in integers (once)…", file=sys.stderr)
        alone("benchmarks.integers", name, what=f"{name} in integers")
        made_of.write_bytes((source / "manifest.json").read_bytes())
    return home


def make(source: Path, ranges: ImageSet, models: Path) -> Path:
    """The bundle of `source` in `models`, its ranges taken from these images."""
    from training.publish.onnx import Exported
    from training.publish.quantise import quantised

    whole = load(source, threads=1)
    stated = whole.manifest
    graphs = {graph.file: (source / graph.file).read_bytes() for _, graph in stated.graphs if graph is not None}
    exported = Exported(stated.input, stated.latent_size, stated.feature_maps, stated.graphs, graphs, {})
    rest = {field: getattr(stated, field) for field in Manifest.model_fields if field not in _SETTLED_ANEW}
    rest["metrics"] = ()
    kept = {
        name: (source / name).read_bytes()
        for name in stated.files
        if name not in {*graphs, *_OF_ITS_OWN, stated.golden.file}
    }
    made = quantised(exported, ranges)
    return save(models, whole.name, {**made.fields, **rest}, {**made.files, **kept}, tolerances=made.tolerances)


def _ranges(name: str, whole: Bundle) -> ImageSet:
    """What it was trained on; drawings where that was nothing."""
    stated = whole.manifest
    if name == RESNET:
        height, width, _ = stated.input.shape
        files = photographs(_DRAWN, height, width)(1)
        return ImageSet(np.stack([whole.preprocess(file) for [file] in files]), np.array([], np.int64), ())
    recipe = Recipe.stored(stated.provenance.recipe)
    target = read_part(stated.provenance.target, "train", stated.input)
    return train_and_held_out(target, recipe.split, recipe.seed)[0]


def main() -> None:
    [name] = sys.argv[1:]
    models, source = MODELS / f"{name}-int8", bundle(name)
    ranges = _ranges(name, load(source, threads=1))
    shutil.rmtree(models, ignore_errors=True)
    make(source, ranges, models)


if __name__ == "__main__":
    main()
