"""Where a bundle comes from: source tree, packages, machine. `commit` needs no torch."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from app.bundle.manifest import Manifest, Provenance, Weights
from training.recipe import Recipe


def provenance(recipe: Recipe, data: dict[str, str], opset: int, weights: Weights | None) -> Provenance:
    """Of a training run. `data` are fingerprints by part, as in target/train; `weights` what the network began with."""
    import torch

    return Provenance(
        recipe=recipe.model_dump_json(),
        seed=recipe.seed,
        source=recipe.source,
        target=recipe.target,
        data=data,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions=versions() | {"torch": str(torch.__version__)},  # with the build's label, which metadata may lack
        opset=opset,
        weights=weights,
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that every bundle's making needs."""
    packages = {package: version(package) for package in ("onnx", "onnxruntime", "numpy", "pillow")}
    return {"python": platform.python_version(), **packages}


def made_by(manifest: Manifest, command: str) -> bool:
    """Whether the bundle was made by `graft` or `base`, which write their name into the recipe in place of a recipe."""
    return manifest.provenance.recipe.startswith(f'{{"{command}": ')


def commit() -> str:
    """The commit of the source tree, marked if files have changed since; "unknown" outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"],  # noqa: S607 - the user's own git
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> str:
    """Processors and, if torch finds one, the GPU, in words."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    except OSError:
        pass
    processors = f"{os.cpu_count()} × {name}"
    return f"{processors}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else processors
