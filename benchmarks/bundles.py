"""The bundles that are served: the repository's own, each in a folder of models of its own, and two drawn networks."""

import shutil
import sys
from pathlib import Path

from benchmarks.home import MODELS, ROOT, alone

SEED, DEFAULT, RESNET, LITE0 = "fashion-mnist-seed", "fashion-mnist", "resnet18", "efficientnet-lite0"
NETWORKS = {RESNET: "ResNet-18", LITE0: "EfficientNet-Lite0"}  # of random weights: speed does not depend on them


def bundle(name: str) -> Path:
    """models/<name>/<name>/<version>: a service that is given models/<name> loads this one bundle and no other."""
    home = MODELS / name / name / "1"
    if name in NETWORKS:
        if not home.exists():
            print(f"exporting a {NETWORKS[name]} of random weights (once)…", file=sys.stderr)
            alone("benchmarks.bundles", name, what=f"{name}: its export needs training's packages")
        return home
    source = ROOT / "models" / name / "1"
    if not home.exists() or (home / "manifest.json").read_bytes() != (source / "manifest.json").read_bytes():
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(source, home)
    return home


def export_network(name: str) -> None:
    """In a process of its own: torch is needed once, and 300 MB are not to stay."""
    import torch
    from torch import nn

    from app.bundle import save
    from app.bundle.manifest import Classifier, Provenance
    from training.networks.autoencoder import build
    from training.networks.graph import OPSET
    from training.publish.onnx import export
    from training.recipe import Input, Network

    torch.manual_seed(0)
    spec = Input(height=224, width=224, channels=3).spec()
    net = build(Network(backbone=name, weights=None, width=8, most=16), spec.shape)
    exported = export(net, nn.Linear(net.latent, 10), spec)
    provenance = Provenance(
        recipe="{}",
        seed=0,
        source="nothing",
        target="nothing",
        data={},
        created="2026-01-01T00:00:00+00:00",
        commit="unknown",
        versions={},
        opset=OPSET,
    )
    rest = {
        "title": f"{NETWORKS[name]} of random weights, for benchmarks",
        "variational": False,
        "classifier": Classifier(labels=tuple("abcdefghij"), temperature=1.0),
        "anomaly": None,
        "reference": None,
        "metrics": (),
        "provenance": provenance,
    }
    save(MODELS / name, name, {**exported.fields, **rest}, exported.files, tolerances=exported.tolerances)


if __name__ == "__main__":
    export_network(sys.argv[1])
