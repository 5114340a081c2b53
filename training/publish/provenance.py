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
    """Of a training run. `data` are fingerprints, by what they are of."""
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
            "torch": str(torch.__version__),  # with the build's label, which the package's own version may lack
            **{package: version(package) for package in ("onnx", "onnxruntime", "numpy", "pillow")},
        },
        opset=opset,
    )


def commit() -> str:
    """Of the source tree, with a mark if it was changed since; unknown outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"],  # noqa: S607 - whichever git the user has
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> str:
    """In words: the processor and how many of them, and the GPU if torch finds one."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    except OSError:
        pass
    found = f"{os.cpu_count()} × {name}"
    return f"{found}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else found
