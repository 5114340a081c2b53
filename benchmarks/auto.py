"""What one command makes of a folder: accuracy on images that it was not given, the time that it takes, and whether
what it says of itself is so.

`auto`: half of NEU, clothing, commutators, each with a test part that is measured once; photographs of three kinds of
clothes, twenty each, drawn twenty times, judged on the test part of these kinds; their labels shuffled ten times. Every
run is a process of its own, from its start.
"""

import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle import Bundle, load
from app.bundle.store import versions
from benchmarks.bars import Bar
from benchmarks.home import Skipped
from training import recipe
from training.auto.verdict import NO_BETTER
from training.data import named
from training.data.read import read_part
from training.errors import TrainingError
from training.measure.outputs import outputs_of
from training.networks import weights

DRAWS, SHUFFLES, SHOTS = 20, 10, 20
KINDS = {  # kinds of clothing → bar and goal of the mean accuracy
    ("pants", "shoes", "t-shirt"): (0.98, 1.0),
    ("longsleeve", "outwear", "shirt"): (0.66, 0.75),
}
WHOLE = {  # set → minutes, metric, bar, goal
    "neu-surface": (10, "accuracy", 0.995, 0.999),
    "clothing": (15, "accuracy", 0.84, 0.9),
    "commutator": (10, "image_auroc", 0.94, 0.98),
}
_STATED = re.compile(r"of new images, ([\d.]+) to ([\d.]+) is to be expected")


@dataclass(frozen=True)
class Made:
    bundle: Bundle
    said: str
    over: float  # of the time, as a share of what was given

    def value(self, metric: str) -> float:
        return next(each.value for each in self.bundle.manifest.metrics if each.name == metric)

    @property
    def stated(self) -> tuple[float, float]:
        [metric] = [each for each in self.bundle.manifest.metrics if each.name == "accuracy_across_folds"]
        found = _STATED.search(metric.how)
        assert found is not None
        return float(found[1]), float(found[2])


def auto(out: Path) -> Iterator[Bar]:
    try:
        weights.path_of(recipe.load("photos", []).network)
    except TrainingError as error:
        raise Skipped(str(error)) from None
    taken = []
    for name, (minutes, metric, bar, goal) in WHOLE.items():
        made = _made(
            _halved(_folder(name), out / name) if name == "neu-surface" else _folder(name), minutes, out / name
        )
        taken.append(made.over)
        print(f"        {name}: {made.said.splitlines()[0]}", flush=True)
        yield Bar(f"{name}, {minutes} minutes, {metric} on its test part", made.value(metric), bar, goal)
        yield Bar(f"{name}, calls that no better than chance", float(NO_BETTER in made.said), 0, 0, False)
    clothing = _folder("clothing")
    for kinds, (bar, goal) in KINDS.items():
        tested = read_part(str(_linked(clothing / "test", kinds, out / "test")), "train", None)
        reached, covered = [], 0
        for draw in range(DRAWS):
            folder = _drawn(clothing / "train", kinds, out / "drawn", seed=draw)
            made = _made(folder, 5, out / "few" / "-".join(kinds) / str(draw))
            images = read_part(str(out / "test"), "train", made.bundle.manifest.input)
            logits = outputs_of(made.bundle, images, "test", ("logits",)).logits
            assert logits is not None
            reached.append(float(np.mean(logits.argmax(axis=1) == tested.labels)))
            low, high = made.stated
            covered += low <= reached[-1] <= high
            taken.append(made.over)
            print(f"        {', '.join(kinds)}, draw {draw}: {reached[-1]:.3f}, stated {low} to {high}", flush=True)
        what = f"{', '.join(kinds)}, {SHOTS} each, {DRAWS} draws"
        yield Bar(f"{what}: mean accuracy on new ones", statistics.mean(reached), bar, goal)
        yield Bar(f"{what}: draws whose stated interval holds it", covered, 18, 20)
    found = 0
    for seed in range(SHUFFLES):
        kinds = list(KINDS)[seed % 2]
        folder = _shuffled(_drawn(clothing / "train", kinds, out / "drawn", seed=seed), out / "shuffled", seed)
        found += NO_BETTER in _made(folder, 1, out / "shuffles" / str(seed)).said
    yield Bar(f"{SHUFFLES} times shuffled labels: said to be no better than chance", found, SHUFFLES, SHUFFLES)
    yield Bar("longest over the time given, as a share of it", max(taken), 0.2, 0.1, False)


def _folder(name: str) -> Path:
    folder = named.root() / name
    if not folder.is_dir():
        raise Skipped(f"{folder} is not there: set GRAFT_DATA")
    return folder


def _made(folder: Path, minutes: float, out: Path) -> Made:
    """By the command, in a process of its own; what `out` has from before is kept."""
    models, run = out / "models", out / "run"
    said, clock = out / "said.txt", out / "seconds.txt"
    if not clock.is_file():
        for before in (models, run):  # of one that was stopped
            shutil.rmtree(before, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "training", "auto", str(folder), "--minutes", f"{minutes:g}"]
        command += ["--name", "made", "--models", str(models), "--run", str(run)]
        began = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        said.write_text(done.stdout)
        clock.write_text(f"{time.monotonic() - began}")
    [version] = versions(models / "made")
    seconds = float(clock.read_text())
    return Made(load(models / "made" / str(version)), said.read_text(), seconds / (60 * minutes) - 1)


def _halved(folder: Path, out: Path) -> Path:
    """Half of each class to learn from, the other half to be tested on."""
    halved = out / "halved"
    if not halved.is_dir():
        rng = random.Random(0)
        for kind in sorted(each for each in folder.iterdir() if each.is_dir()):
            files = sorted(kind.iterdir())
            rng.shuffle(files)
            for number, file in enumerate(files):
                own = halved / ("train" if number < len(files) // 2 else "test") / kind.name
                own.mkdir(parents=True, exist_ok=True)
                (own / file.name).symlink_to(file.resolve())
    return halved


def _linked(part: Path, kinds: Sequence[str], out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for kind in kinds:
        (out / kind).symlink_to((part / kind).resolve())
    return out


def _drawn(part: Path, kinds: Sequence[str], out: Path, seed: int) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    rng = random.Random(seed)
    for kind in kinds:
        (out / kind).mkdir(parents=True)
        for file in rng.sample(sorted((part / kind).iterdir()), SHOTS):
            (out / kind / file.name).symlink_to(file.resolve())
    return out


def _shuffled(folder: Path, out: Path, seed: int) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    files = sorted(each for each in folder.rglob("*") if not each.is_dir())
    labels = [each.parent.name for each in files]
    random.Random(seed).shuffle(labels)
    for number, (file, label) in enumerate(zip(files, labels, strict=True)):
        (out / label).mkdir(parents=True, exist_ok=True)
        (out / label / f"{number}{file.suffix}").symlink_to(file.resolve())
    return out
