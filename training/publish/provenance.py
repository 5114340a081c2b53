"""Where a bundle comes from: source tree, packages, machine. `commit` needs no torch."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from app.bundle.manifest import Provenance
from training.recipe import Recipe


def provenance(recipe: Recipe, data: dict[str, str], opset: int) -> Provenance:
    """Of a training run. `data` are fingerprints by part, as in target/train."""
    import torch

    return Provenance(
        recipe=recipe.model_dump_json(),
        seed=recipe.seed,
        source=recipe.source,
        target=recipe.target,
        data=data,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with the build's label, which the package's metadata may lack
            **{package: version(package) for package in ("onnx", "onnxruntime", "numpy", "pillow")},
        },
        opset=opset,
    )


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
