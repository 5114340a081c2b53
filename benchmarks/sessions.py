"""onnxruntime's own settings, tried on the default model and on ResNet-18 with batches of ever another size.

python -m benchmarks.sessions FOLDER SETTING SECONDS       # one of them: images per second, and memory over time
"""

import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.bundles import DEFAULT, RESNET, bundle
from benchmarks.home import alone
from benchmarks.peers import resident_mb
from benchmarks.serving import LOAD_CORE, SERVER_CORE

MODELS = {DEFAULT: 2, RESNET: 8}  # for so many times the seconds that are asked for: its batches take longer
LARGEST = 32  # as the service's own
SETTINGS: dict[str, dict[str, Any]] = {
    "one thread": {},
    "no memory patterns, as the service has it": {"enable_mem_pattern": False},
    "no arena": {"enable_cpu_mem_arena": False},
    "neither": {"enable_mem_pattern": False, "enable_cpu_mem_arena": False},
    "as the service has it, two threads on two cores": {"enable_mem_pattern": False, "intra_op_num_threads": 2},
}


def measure(seconds: float, repetitions: int) -> dict[str, Any]:
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    folders = {model: bundle(model) for model in MODELS}
    for model, longer in MODELS.items():
        cells = found[model] = {setting: [] for setting in SETTINGS}
        for _ in range(repetitions):
            for setting, options in SETTINGS.items():
                cores = {SERVER_CORE, LOAD_CORE} if options.get("intra_op_num_threads") else {SERVER_CORE}
                requested = (str(folders[model]), setting, str(seconds * longer))
                output = json.loads(alone("benchmarks.sessions", *requested, what=f"{model}, {setting}", cores=cores))
                cells[setting].append(output)
                print(
                    f"  {model}, {setting}: {output['per_second']:,.0f}/s, {output['last_mb']:.0f} MB", file=sys.stderr
                )
    return found


def run(encoder: Path, setting: str, seconds: float) -> dict[str, float]:
    """Batches of 1 to LARGEST, in an order that is the same for every setting; the largest comes first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in SETTINGS[setting].items():
        setattr(options, name, value)
    session = onnxruntime.InferenceSession(str(encoder), options, providers=["CPUExecutionProvider"])
    [taken] = session.get_inputs()
    images = np.random.default_rng(0).integers(0, 256, (LARGEST, *taken.shape[1:]), dtype=np.uint8)
    loaded = resident_mb(os.getpid())
    session.run(None, {taken.name: images})
    order, done, resident, start = random.Random(0), 0, [], time.perf_counter()
    while time.perf_counter() - start < seconds or len(resident) < 2:
        size = order.randint(1, LARGEST)
        session.run(None, {taken.name: images[:size]})
        done += size
        resident.append(resident_mb(os.getpid()))
    spent = time.perf_counter() - start
    first, last = resident[: len(resident) // 2], resident[len(resident) // 2 :]
    return {"per_second": done / spent, "loaded_mb": loaded, "first_mb": max(first), "last_mb": max(last)}


def table(found: Mapping[str, Any]) -> str:
    lines = [f"### Settings of onnxruntime (`sessions`): batches of 1 to {LARGEST}, ever another size", ""]
    lines += ["| model | setting | images/s | MB, loaded | most MB, first half | most MB, last half |"]
    lines += ["| --- " * 6 + "|"]
    for model, settings in found.items():
        for setting, runs in settings.items():
            rate, *resident = (
                float(np.median([each[name] for each in runs]))
                for name in ("per_second", "loaded_mb", "first_mb", "last_mb")
            )
            lines.append(f"| {model} | {setting} | {rate:,.0f} | {' | '.join(f'{each:.0f}' for each in resident)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]) / "encoder.onnx", sys.argv[2], float(sys.argv[3]))))
