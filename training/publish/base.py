"""A published network as a bundle that encodes: a base to graft classes onto. No data, nothing is learnt."""

import json
from datetime import UTC, datetime
from pathlib import Path

import torch

from app.bundle import Manifest, save
from app.bundle.bundle import CARD_FILE
from app.bundle.manifest import MANIFEST_FILE, Provenance
from app.bundle.store import versions as versions_in
from training.errors import TrainingError
from training.networks import weights
from training.networks.autoencoder import build
from training.networks.graph import OPSET
from training.progress import say
from training.publish import onnx
from training.publish.card import card_of_base
from training.publish.provenance import commit, made_by, versions
from training.recipe import Input, Network

MADE_BY = "base"  # the key in the recipe of such a bundle


def publish(network: Network, spec: Input, models: Path, name: str) -> Path:
    """The next version of models/<name>/; the bundle's folder."""
    _refuse_taken(models / name)
    facts = weights.facts(network)
    assert facts is not None  # a base without published weights would be noise
    exported = onnx.export(build(network, spec.spec().shape), None, spec.spec(), features=True, decodes=False)
    recipe = {"backbone": facts.backbone, "weights": facts.file, "input": spec.model_dump(mode="json")}
    fields = {
        **exported.fields,
        "title": f"{facts.backbone} as it was published: a base to graft classes onto",
        "variational": False,
        "classifier": None,
        "anomaly": None,
        "reference": None,
        "metrics": (),
        "provenance": Provenance(
            recipe=json.dumps({MADE_BY: recipe}),
            seed=0,
            source=f"the images that {facts.file} was trained on",
            target="no images",
            data={},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=commit(),
            versions=versions() | {"torch": str(torch.__version__)},
            opset=OPSET,
            weights=facts,
        ),
    }
    card = card_of_base(Manifest.model_construct(**fields))
    path = save(models, name, fields, {**exported.files, CARD_FILE: card.encode()})
    publisher, licence = facts.publisher or "publisher not known", facts.licence or "not known"
    say(f"{facts.backbone}: {facts.file}, {publisher}, licence {licence}")
    return path


def _refuse_taken(home: Path) -> None:
    """A trained model gets no next version that can only encode."""
    if not home.is_dir() or not versions_in(home):
        return
    newest = home / str(versions_in(home)[-1])
    manifest = Manifest.parse((newest / MANIFEST_FILE).read_bytes(), f"{home.name}/{newest.name}")
    if not made_by(manifest, MADE_BY):
        raise TrainingError(f"{newest}: this model was not made by base ({manifest.title}): give another --name")
