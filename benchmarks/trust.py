"""Whether promises hold: coverage of prediction sets, false alarms of the martingale, accuracy without labels.

`sets`: on the whole test part of each bundle, through the exported graphs; NEU's is a frozen Lite0 with a linear head,
made by the recipe `photos`. A coverage counts as kept if chance in calibration and test images explains it (95 %,
beta-binomial); class by class the interval is as much wider as there are classes and coverages. `watch`: simulated
streams without a change, and streams of test images that change. Nothing was chosen by test images.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from app.bundle import Bundle, load
from app.bundle.manifest import InputSpec
from app.bundle.martingale import FALSE_ALARM, Martingale
from app.bundle.scoring import label_probabilities
from app.bundle.sets import By, PredictionSets, SetOptions, arrays_of
from app.bundle.store import versions
from benchmarks.backbones import bundle_of, folder_of
from benchmarks.bars import Bar
from benchmarks.home import ROOT, Skipped
from training.data.imageset import ImageSet
from training.data.read import read_part
from training.data.splits import part_to_measure
from training.measure import intervals
from training.measure.outputs import Outputs, outputs_of
from training.measure.sets import measure

COVERAGES = (0.8, 0.9, 0.95, 0.99)
NEU = "neu-surface"
NEU_SETTINGS = ("split.test=0.5",)
STREAMS, LONG, SCORES = 1000, 10_000, 9
TURNS, SHARE = 100, 0.2  # streams that change, and the share of digits among garments
BEFORE, MOST = 1000, 500  # images of a stream before it changes, and after
SPLITS, STREAM = 400, 2000  # of held-out images, for the accuracy


@dataclass(frozen=True)
class Held:
    """A bundle and its test part."""

    bundle: Bundle
    test: ImageSet
    outputs: Outputs

    @property
    def rows(self) -> np.ndarray:
        """(N, K) probabilities."""
        assert self.outputs.logits is not None
        assert self.bundle.manifest.classifier is not None
        return label_probabilities(self.outputs.logits, self.bundle.manifest.classifier)

    @property
    def sets(self) -> PredictionSets:
        if self.bundle.sets is None:
            raise Skipped(f"{self.bundle.name} has no prediction sets: renew it with graft-train renew")
        return self.bundle.sets


def held(name: str, out: Path) -> Held:
    if name == NEU:
        folder = str(folder_of(NEU))
        bundle = bundle_of(Path(folder), NEU_SETTINGS, out / NEU)
        test, _ = part_to_measure(folder, "test", bundle.manifest)
    else:
        home = ROOT / "models" / name
        bundle = load(home / str(max(versions(home))), threads=1)
        test = read_part("fashion-mnist", "test", bundle.manifest.input)
    return Held(bundle, test, outputs_of(bundle, test, name, ("embedding", "logits")))


def sets(out: Path) -> Iterator[Bar]:
    for name in ("fashion-mnist", "fashion-mnist-seed", NEU):
        own = held(name, out)
        ways: tuple[By, ...] = ("lac", "raps")
        for by in ways:
            yield Bar(f"{name}, {by}: coverages of 4 that hold", _kept(own, by), 4, 4)
        tried, broken = _broken(own)
        yield Bar(f"{name}, for every class: of {tried} coverages those that do not hold", broken, 0, 0, False)
        what = f"{name}, lac, {SPLITS} deals of calibration and test images: share of the coverages that hold"
        yield Bar(what, _kept_when_dealt_anew(own), 0.92, 0.95)
        if name == "fashion-mnist":
            _shifted(own)


def _kept(own: Held, by: By) -> int:
    kept = 0
    for coverage in COVERAGES:
        found = measure(own.bundle, own.test, own.outputs, SetOptions(coverage, by))
        assert found is not None
        (low, high), value, empty = found.expected, float(found.covered.mean()), float((found.sizes == 0).mean())
        kept += low <= value <= high
        print(
            f"        {own.bundle.name}, {by} at {coverage:g}: {value:.4f} ({low:.4f} to {high:.4f}), "
            f"{found.sizes.mean():.3f} labels, {empty:.2%} empty",
            flush=True,
        )
    return kept


def _kept_when_dealt_anew(own: Held) -> float:
    """Whether a test part that is not kept differs from the calibration images, or sets are made wrongly."""
    rng, count = np.random.default_rng(0), len(own.sets)
    tested = own.rows[np.arange(len(own.test)), own.test.labels]
    pooled, kept = np.concatenate([own.sets.probabilities, tested]), []
    limits = {each: intervals.coverage(each, count, len(tested)) for each in COVERAGES}
    for _ in range(SPLITS):
        calibration, others = np.split(rng.permutation(pooled), [count])
        for coverage, (low, high) in limits.items():
            threshold = np.sort(calibration)[::-1][math.ceil((count + 1) * coverage - 1e-9) - 1]
            kept.append(low <= np.mean(others >= threshold) <= high)
    return float(np.mean(kept))


def _broken(own: Held) -> tuple[int, int]:
    """(coverages of classes, those outside of their interval), of those that the class has enough images for."""
    counts, tested = np.bincount(own.sets.labels), np.bincount(own.test.labels)
    asked = [(each, label) for each in COVERAGES for label, n in enumerate(counts) if np.ceil((n + 1) * each) <= n]
    broken = 0
    for coverage, label in asked:
        found = measure(own.bundle, own.test, own.outputs, SetOptions(coverage, conditional=True))
        assert found is not None
        low, high = intervals.coverage(coverage, int(counts[label]), int(tested[label]), 0.05 / len(asked))
        broken += not low <= found.of_class(label)[0] <= high
    return len(asked), broken


def _shifted(own: Held) -> None:
    for name, images in _changes(own.test).items():
        changed = ImageSet(images, own.test.labels, own.test.classes)
        outputs = outputs_of(own.bundle, changed, name, ("logits",))
        found = measure(own.bundle, changed, outputs, SetOptions(0.95))
        assert found is not None
        print(f"        {own.bundle.name}, {name}: sets at 0.95 hold the truth for {found.covered.mean():.4f}")


def _changes(test: ImageSet) -> dict[str, np.ndarray]:
    images = np.asarray(test.images)
    turned = [np.asarray(Image.fromarray(each[..., 0]).rotate(30, Image.Resampling.BILINEAR)) for each in images]
    return {
        "turned by 30 degrees": np.stack(turned)[..., None],
        "half as bright": (images * 0.5).astype(np.uint8),
        "0.7 times as bright": (images * 0.7).astype(np.uint8),
    }


def watch(out: Path) -> Iterator[Bar]:
    for calibrated_on in (100, 5000):
        alarms = sum(_simulated(calibrated_on, seed).alarm_at is not None for seed in range(STREAMS))
        what = (
            f"alarms in {STREAMS:,} streams of {LONG:,} images without a change, {calibrated_on:,} calibration images"
        )
        yield Bar(what, alarms, 10, 10, higher_is_better=False)
    own = held("fashion-mnist", out)
    usual, strange = _scores(own.bundle, own.test), _of_digits(own)
    noticed = [_noticed(own, usual, strange, seed, SHARE) for seed in range(TURNS)]
    print(
        f"        {SHARE:.0%} digits: noticed after {np.median(noticed):.0f} images, the slowest after {max(noticed)}"
    )
    within = sum(each <= MOST for each in noticed)
    yield Bar(f"of {TURNS} streams with {SHARE:.0%} digits those noticed within {MOST} images", within, 99, 100)
    for name, images in _changes(own.test).items():
        changed = _scores(own.bundle, ImageSet(images, own.test.labels, own.test.classes))
        slowest = max(_noticed(own, usual, changed, seed) for seed in range(TURNS))
        yield Bar(f"images until garments {name} are noticed, the slowest of {TURNS} streams", slowest, 300, 100, False)
    yield from _accuracy(out)
    yield Bar("microseconds to watch an image", _microseconds(own), 40, 20, False)


def _simulated(calibrated_on: int, seed: int) -> Martingale:
    """Scores that depend on each other, as those of one embedding do."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(calibrated_on + LONG, SCORES)) @ rng.normal(size=(SCORES, SCORES)) / 3
    scores = np.exp(mixed).astype(np.float32)
    martingale = Martingale(scores[:calibrated_on], rng)
    martingale.add(scores[calibrated_on:], 1 / FALSE_ALARM)
    return martingale


def _scores(bundle: Bundle, data: ImageSet) -> np.ndarray:
    if bundle.drift is None or bundle.drift.stream is None:
        raise Skipped(f"{bundle.name} has no scores for a martingale: renew it with graft-train renew")
    return bundle.drift.stream.of(outputs_of(bundle, data, "watch", ("embedding",)).encoded["embedding"])


def _of_digits(own: Held) -> np.ndarray:
    spec: InputSpec = own.bundle.manifest.input
    return _scores(own.bundle, read_part("mnist", "test", spec))


def _noticed(own: Held, usual: np.ndarray, changed: np.ndarray, seed: int, share: float = 1.0) -> int:
    """Images after the change until the alarm; more than MOST if there is none, and 0 if it was false."""
    assert own.bundle.drift is not None
    assert own.bundle.drift.stream is not None
    assert own.bundle.drift.stream.calibration is not None
    rng = np.random.default_rng(seed)
    martingale = Martingale(own.bundle.drift.stream.calibration, rng)
    order = rng.permutation(len(usual))
    before, after = usual[order[:BEFORE]], usual[order[BEFORE : BEFORE + MOST]]
    others = changed[rng.choice(len(changed), MOST, replace=False)]
    stream = np.concatenate([before, np.where(rng.random((MOST, 1)) < share, others, after)])
    martingale.add(stream, 1 / FALSE_ALARM)
    return MOST + 1 if martingale.alarm_at is None else max(0, martingale.alarm_at - BEFORE)


def _accuracy(out: Path) -> Iterator[Bar]:
    """On whole test parts; and with held-out images dealt anew, so that they are exchangeable beyond doubt."""
    off = []
    for name in ("fashion-mnist", "fashion-mnist-seed", NEU):
        own = held(name, out)
        confidences, right = own.rows.max(axis=1), own.rows.argmax(axis=1) == own.test.labels
        value, low, high = own.sets.accuracy(float(confidences.mean()), len(right))
        off.append(100 * abs(value - right.mean()))
        print(f"        {name}: estimated {value:.4f} ({low:.4f} to {high:.4f}), is {right.mean():.4f}", flush=True)
        inside = _dealt_anew(own)
        yield Bar(f"{name}, {SPLITS} deals: share of the intervals that hold the accuracy", inside, 0.95, 0.95)
    yield Bar("estimated accuracy on whole test parts, points off, the worst of three", max(off), 2, 1, False)


def _dealt_anew(own: Held) -> float:
    """Half of the test images calibrate, some of the others are the stream."""
    rng, rows, inside = np.random.default_rng(0), own.rows, []
    for _ in range(SPLITS):
        order = rng.permutation(len(rows))
        half, stream = np.split(order, 2)
        stream = stream[:STREAM]
        sets = PredictionSets(arrays_of(rows[half], own.test.labels[half]), rows.shape[1])
        _, low, high = sets.accuracy(float(rows[stream].max(axis=1).mean()), len(stream))
        inside.append(low <= (rows[stream].argmax(axis=1) == own.test.labels[stream]).mean() <= high)
    return float(np.mean(inside))


def _microseconds(own: Held) -> float:
    """Scores and bets of 64 images at a time, as a service takes them."""
    assert own.bundle.drift is not None
    stream = own.bundle.drift.stream
    assert stream is not None
    assert stream.calibration is not None
    martingale, times = Martingale(stream.calibration, np.random.default_rng(0)), []
    for start in range(0, 6400, 64):
        embeddings = own.outputs.encoded["embedding"][start : start + 64]
        since = time.thread_time()
        martingale.add(stream.of(embeddings), 1 / FALSE_ALARM)
        times.append(time.thread_time() - since)
    return float(np.median(times)) / 64 * 1e6
