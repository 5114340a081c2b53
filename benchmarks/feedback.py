"""Evidence and feedback, each beside its bar.

`similar`: an index of 100,000 embeddings of the default, of Fashion-MNIST's training images and MNIST's; queries are
Fashion-MNIST's test images. `feedback`: NEU's surfaces by `photos`, half of them a test part that nothing has learnt
from. A drawn camera makes these darker, shifted and noisy; 200 are sent to a service with their labels, right or wrong,
and `graft-train learn` runs, where torch cannot be imported. The accuracy is that of the other 700.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from app.bundle import Bundle, load, preprocess_pixels
from app.bundle.encode import png_of
from app.bundle.index import MOST_EXAMPLES, Index, in_blocks
from app.bundle.store import versions
from benchmarks.bars import Bar
from benchmarks.home import ROOT, Skipped
from benchmarks.service import serving
from training import recipe, run
from training.data import named
from training.data.read import read_part
from training.data.splits import list_training_part
from training.measure.intervals import student
from training.measure.outputs import outputs_of
from training.networks import weights
from training.score import examples, reference

SEEDS = 3
GIVEN = 200
QUERIES = 1000
NEAREST = 10
DARKER, SHIFTED, NOISE = 0.5, 40, 40.0  # a factor, pixels of 416, levels of 256
SPLIT = ("split.test=0.5", "input.height=128", "input.width=128")


def similar(default: Bundle) -> Iterator[Bar]:
    spec = default.manifest.input
    parts = [read_part("fashion-mnist", "train", spec), read_part("mnist", "train", spec)]
    encoded = [outputs_of(default, part, "embeddings", ("embedding",)).encoded["embedding"] for part in parts]
    embeddings = np.concatenate(encoded)[:MOST_EXAMPLES].astype(np.float32)
    test = read_part("fashion-mnist", "test", spec).take(np.arange(QUERIES))
    queries = outputs_of(default, test, "queries", ("embedding",)).encoded["embedding"].astype(np.float32)
    mean, basis = examples.projection(embeddings, examples.DIRECTIONS, "embedding")
    codes = examples.halved((embeddings - mean) @ basis.astype(np.float32), "embedding")
    order = in_blocks(codes)
    embeddings, codes = embeddings[order], codes[order]
    file = reference.to_bytes({"mean": mean, "basis": basis, "codes": codes}, compressed=False)
    ready = []
    for _ in range(5):
        start = time.perf_counter()
        index = Index(reference.arrays_of(file), embeddings.shape[1])
        ready.append(time.perf_counter() - start)
    found, times = [], []
    for query in queries:
        start = time.thread_time()  # of one core: other processes may be at work
        found.append(index.nearest(query[None])[0][0, :NEAREST])
        times.append(time.thread_time() - start)
    hits, lengths = 0, np.square(embeddings).sum(axis=1)
    for query, rows in zip(queries, found, strict=True):
        exact = np.argpartition(lengths - 2 * embeddings @ query, NEAREST)[:NEAREST]
        hits += len(set(exact.tolist()) & set(rows.tolist()))
    what = f"{len(index):,} embeddings of {embeddings.shape[1]} numbers"
    yield Bar(f"{what}: recall at {NEAREST}, against all in full precision", hits / NEAREST / QUERIES, 0.99, 1.0)
    yield Bar(f"{what}: milliseconds a query, one core, median", 1000 * float(np.median(times)), 1.0, 0.3, False)
    yield Bar(f"{what}: seconds until it is ready, median of 5", float(np.median(ready)), 0.3, 0.1, False)


def feedback(out: Path) -> Iterator[Bar]:
    folder = named.root() / "neu-surface"
    try:
        weights.path_of(recipe.load("photos", []).network)
    except weights.TrainingError as error:
        raise Skipped(str(error)) from None
    if not folder.is_dir():
        raise Skipped(f"{folder} is not there: set GRAFT_DATA to the folder that holds it")
    chosen = recipe.load("photos", [f"source={folder}", f"target={folder}", *SPLIT])
    home = out / "models" / chosen.name
    if not home.is_dir():
        run.run(chosen, out / "models", out / "run")
    bundle = load((home / str(versions(home)[0])).resolve(), threads=1)
    learnt_from = set(list_training_part(str(folder), chosen.split, chosen.seed).names)
    paths = [path for path in sorted(folder.glob("*/*.jpg")) if f"{path.parent.name}/{path.name}" not in learnt_from]
    returned, costs, seconds, refused = [], [], [], 0
    wrong = 0
    for seed in range(SEEDS):
        camera = _Camera(seed)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(paths))
        given, others = ([paths[row] for row in rows] for rows in np.split(order, [GIVEN]))
        clean, shifted = _accuracy(bundle, others), _accuracy(bundle, others, camera)
        kinds = bundle.manifest.classifier.labels if bundle.manifest.classifier else ()
        right = [path.parent.name for path in given]
        start = time.monotonic()
        made, said = _learn(bundle, home, given, right, camera)
        seconds.append(time.monotonic() - start - _Sent.seconds)
        if made is None:
            raise RuntimeError(f"right corrections were refused: {said}")
        after, kept = _accuracy(made, others, camera), _accuracy(made, others)
        returned.append((after - shifted) / (clean - shifted))
        costs.append(clean - kept)
        print(f"        seed {seed}: {clean:.4f}, shifted {shifted:.4f}, learnt {after:.4f}, unshifted {kept:.4f}")
        next_one = {kind: kinds[(place + 1) % len(kinds)] for place, kind in enumerate(kinds)}
        drawn = [str(rng.choice([each for each in kinds if each != label])) for label in right]
        ways = {
            "drawn": (drawn, camera),
            "the next label": ([next_one[label] for label in right], camera),
            "drawn, old camera": (drawn, None),
            "the next label, old camera": ([next_one[label] for label in right], None),
        }
        for way, (labels, seen_by) in ways.items():
            made, said = _learn(bundle, home, given, labels, seen_by)
            refused += made is None
            wrong += 1
            print(f"        seed {seed}, {way}: {'published' if made else said}", flush=True)
    found = student(returned)
    print(f"        share given back: 95 % interval {found.low:.3f} to {found.high:.3f}")
    yield Bar(
        f"share of the lost accuracy that {GIVEN} corrections give back, least of {SEEDS}", min(returned), 0.5, 0.8
    )
    yield Bar("accuracy that it costs on the old camera, most", max(costs), 0.02, 0.0, False)
    yield Bar("seconds to learn, without torch, most", max(seconds), 30.0, 10.0, False)
    yield Bar(f"share of {wrong} times {GIVEN} wrong corrections that are refused", refused / wrong, 1.0, 1.0)


class _Camera:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        moved = np.roll(pixels.astype(np.float32), SHIFTED, axis=(0, 1)) * DARKER
        noisy = moved + self._rng.normal(size=pixels.shape).astype(np.float32) * NOISE
        return np.asarray(np.clip(noisy.round(), 0, 255), np.uint8)


def _pixels(path: Path, camera: _Camera | None) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return pixels if camera is None else camera(pixels)


def _accuracy(bundle: Bundle, paths: Sequence[Path], camera: _Camera | None = None) -> float:
    right, spec = 0, bundle.manifest.input
    for start in range(0, len(paths), 50):
        some = paths[start : start + 50]
        images = np.stack([preprocess_pixels(_pixels(path, camera), spec) for path in some])
        right += sum(found.label == path.parent.name for found, path in zip(bundle.classify(images), some, strict=True))
    return right / len(paths)


class _Sent:
    seconds = 0.0  # that sending took, of the last time


def _learn(
    bundle: Bundle, home: Path, paths: Sequence[Path], labels: Sequence[str], camera: _Camera | None
) -> tuple[Bundle | None, str]:
    """(the bundle that was published, or None; the last line that was said)."""
    start = time.monotonic()
    spool = home.parent.parent / f"spool-{time.monotonic_ns()}"
    with serving(GRAFT_MODELS=str(home.parent), GRAFT_FEEDBACK=str(spool)) as client:
        for path, label in zip(paths, labels, strict=True):
            data = png_of(_pixels(path, camera))
            query = {"label": label, "model": f"{bundle.name}@{bundle.version}"}
            client.post("/v1/feedback", params=query, files={"image": data}).raise_for_status()
    _Sent.seconds = time.monotonic() - start
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'onnxscript', 'httpx', 'rich'));"
    code = f"{blocked} from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "learn", str(home / str(bundle.version)), str(spool)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = (done.stderr.strip().splitlines() or [""])[-1]
    return (load(Path(done.stdout.strip()).resolve(), threads=1) if done.returncode == 0 else None), said
