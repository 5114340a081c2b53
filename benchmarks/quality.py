"""The bars of quality, each measured here and printed with its number.

    make quality            # all of them; or: ONLY=served,ood make quality

Named data sets lie in GRAFT_DATA, `neu-surface` beside them, a folder per defect; scikit-learn's digits are read from
there (`digits/digits.csv.gz`) or from an installed scikit-learn. Nothing is chosen by a test set: recipes were tuned
on validation images, thresholds come from calibration images.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from app.bundle import Bundle, load
from app.bundle.scoring import AnomalyScorer, thumbnails
from app.bundle.store import versions
from app.errors import GraftError
from benchmarks import auto, backbones, feedback, inspection, page, trust
from benchmarks.bars import Bar, table
from benchmarks.bundles import bundle
from benchmarks.home import ROOT, Skipped, made
from benchmarks.integers import in_integers
from training import malloc, recipe
from training.compare import results as comparison
from training.compare.bench import compare
from training.data import digits, named, textures
from training.data.imageset import ImageSet
from training.data.material import gather
from training.data.read import read_part
from training.data.splits import train_and_held_out
from training.learning.inference import read
from training.learning.pretrain import pretrain
from training.learning.workshop import open_workshop
from training.measure import drawn_domains
from training.measure.detection import auroc
from training.measure.intervals import student
from training.measure.metrics import accuracy
from training.measure.outputs import outputs_of
from training.score import anomaly
from training.score.distances import Normals

DEFAULT = Path("models/fashion-mnist")
NEU_SPLIT = ("split.calibration=20", "split.validation=30")  # of 900: the more are left to learn from


def newest() -> Bundle:
    return load(DEFAULT / str(max(versions(DEFAULT))), threads=1)


def served() -> Iterator[Bar]:
    bundle = newest()
    test = read_part("fashion-mnist", "test", bundle.manifest.input)
    yield Bar("served Fashion-MNIST accuracy", accuracy(bundle, test, "served"), 0.94, 0.955)
    folder = DEFAULT / str(bundle.version)
    weights = [
        int(np.prod(weight.dims))
        for graph in (bundle.manifest.graphs.encoder, bundle.manifest.graphs.decoder, bundle.manifest.graphs.head)
        if graph is not None
        for weight in onnx.load(str(folder / graph.file)).graph.initializer
    ]
    yield Bar("weights in the served graphs, millions", sum(weights) / 1e6, 1.0, 1.0, higher_is_better=False)
    image = test.images[:1]
    yield Bar("milliseconds to classify an image, one core", _ms(lambda: bundle.classify(image)), 1.0, 1.0, False)

    def everything() -> None:
        bundle.classify(image)
        bundle.anomaly(image)

    yield Bar("milliseconds to answer everything, one core", _ms(everything), 2.0, 2.0, False)


def _ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(300):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def ood(drawn: int = 2400) -> Iterator[Bar]:
    """The default was pretrained on MNIST, which chose its distances too; no choice has seen the other domains."""
    bundle = newest()
    spec, calibration = bundle.manifest.input, bundle.manifest.anomaly
    assert calibration is not None
    domains = {
        "fashion-mnist": read_part("fashion-mnist", "test", spec),
        "mnist": read_part("mnist", "test", spec),
        "digits": read_part(digits.NAME, "test", spec),
        "NEU surfaces": read_part(str(named.root() / textures.FOLDER), "test", spec),
        **{name: unlabelled(images) for name, images in drawn_domains.drawn(spec.shape, count=drawn).items()},
    }
    areas, normal = {}, np.zeros(0)
    for name, images in domains.items():
        scores = outputs_of(bundle, images, name, ("scores",)).scores
        assert scores is not None
        normal = normal if len(normal) else scores  # the first domain is the normal one
        areas[name] = auroc(normal, scores)
        alarms = float(np.mean(scores > calibration.threshold))
        print(f"        {name}, {len(images):,} images: AUROC {areas[name]:.4f}, {alarms:.1%} called anomalous")
    del areas["fashion-mnist"]
    seen = areas.pop("mnist")
    yield Bar("Fashion-MNIST against MNIST, by which its distances were chosen, AUROC", seen, 0.995, 0.9999)
    worst = min(areas, key=lambda name: areas[name])
    what = f"against the worst of {len(areas)} domains that no choice has seen ({worst}), AUROC"
    yield Bar(what, areas[worst], 0.95, 0.995)


def unlabelled(images: np.ndarray) -> ImageSet:
    return ImageSet(images, np.array([], np.int64), ())


def integers() -> Iterator[Bar]:
    """The gate of a recipe's `export.int8`, and the milliseconds that eight bits save."""
    whole, in_eight_bits = (load(each(DEFAULT.name), threads=1) for each in (bundle, in_integers))
    chosen = recipe.Recipe.stored(whole.manifest.provenance.recipe)
    target = read_part(chosen.target, "train", whole.manifest.input)
    _, validation, _ = train_and_held_out(target, chosen.split, chosen.seed)
    test = read_part(chosen.target, "test", whole.manifest.input)
    right = []
    for name, each in (("fp32", whole), ("integers", in_eight_bits)):
        right.append(accuracy(each, validation, name))
        message = f"{right[-1]:.4f} of validation images, {accuracy(each, test, name):.4f} of test images"
        print(f"        {name}: {message}, {_ms(partial(each.classify, test.images[:1])):.3f} ms an image")
    yield Bar(
        "accuracy that integers of eight bits cost", round(right[0] - right[1], 9), chosen.export.most_lost, 0.0, False
    )


def neu(out: Path) -> Iterator[Bar]:
    folder = str(named.root() / "neu-surface")
    chosen = recipe.load("defects", [f"source={folder}", f"target={folder}", *NEU_SPLIT])
    compare(chosen, out / "neu", ("finetuned", "scratch"), (10,), seeds=8)  # with few labels much depends on which
    compare(chosen, out / "neu", ("finetuned",), (None,), seeds=3)  # no bar needs scratch with all labels
    results = comparison.read(out / "neu")
    few = comparison.difference(results, "finetuned", 60)
    assert few is not None
    print(f"        NEU, 10 labels per class: gain {few.mean:+.4f}, 95 % interval {few.low:+.4f} to {few.high:+.4f}")
    yield Bar("NEU, 10 labels per class, gain over scratch: the interval's lower end", few.low, 0.0, 0.1)
    whole = [r.accuracy for r in results if r.arm == "finetuned" and r.budget is None]
    yield Bar("NEU, all labels of the training half", float(np.mean(whole)), 0.98, 0.995)


def frozen(out: Path) -> Iterator[Bar]:
    compare(recipe.load("frozen", []), out / "frozen", ("random", "source"), (None,), seeds=5)
    results = comparison.read(out / "frozen")
    found = student([r.accuracy for r in results if r.arm == "source"])
    gain = comparison.difference(results, "source", results[0].labels, "random")
    assert gain is not None
    print(f"        95 % interval over seeds: {found.low:.4f} to {found.high:.4f}; untrained: {gain.mean:+.4f} less")
    yield Bar("frozen MNIST-only encoder, linear probe, mean of 5 seeds", found.mean, 0.91, 0.925)
    yield Bar("the same less the same network untrained: the interval's lower end", gain.low, 0.0, 0.0)


def one_class(out: Path) -> Iterator[Bar]:
    """For each class a score that has seen nothing but it, against the test images of all the others.

    The maps that classify best do not detect anomalies best (docs/experiments.md): these come from residual blocks, and
    are read in 4 x 4 cells.
    """
    chosen = recipe.load(
        "frozen",
        [
            "network.shortcuts=true",
            "network.stem=32",
            "network.grid=4",
            "network.maxima=false",
            "pretrain.epochs=1",
            'anomaly.distances=["thumbnail.neighbours", "features.residual"]',
        ],
    )
    material = gather(chosen)
    workshop = open_workshop(chosen, material.spec.shape, out / "one-class", untrained=False)
    pretrain(workshop, material.source_train, material.source_validation, chosen.pretrain)
    blocks = [math.prod(shape) for shape in workshop.net.pool.shapes]
    train, test = (
        Normals({"features": read(workshop, part, "features"), "thumbnail": thumbnails(part.images[:])}, None)
        for part in (material.target, material.test)
    )
    sizes = {name: points.shape[1] for name, points in test.encoded.items()}
    found = []
    for label, name in enumerate(material.test.classes):
        own = np.flatnonzero(material.target.labels == label)
        fitted_on, held_out = (_some(train, rows) for rows in np.split(own, [len(own) * 5 // 6]))
        calibration, arrays = anomaly.fit(
            fitted_on, held_out, chosen.anomaly.distances, chosen.false_alarm_rate, blocks
        )
        scorer = AnomalyScorer(calibration, arrays, sizes)
        scores = scorer.combine(test.distances(scorer))
        normal = material.test.labels == label
        found.append(auroc(scores[normal], scores[~normal]))
        print(f"        {name}: {found[-1]:.4f}", flush=True)
    hardest = sorted(zip(found, material.test.classes, strict=True))[:2]
    print("        the hardest: " + ", ".join(f"{name} {area:.4f}" for area, name in hardest))
    yield Bar("one-class Fashion-MNIST, mean AUROC", statistics.mean(found), 0.94, 0.955)


def _some(normals: Normals, rows: np.ndarray) -> Normals:
    return Normals({name: points[rows] for name, points in normals.encoded.items()}, None)


PARTS = (
    "served,ood,int8,frozen,one-class,neu,backbone,backbone-speed,distilled,literature,inspect,inspect-small,sets,watch,"
    "similar,feedback"
)
BY_NAME = "thawed, inspect-own or auto"  # take an hour or more: only where they are asked for
PAGE = ROOT / "docs" / "quality.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=PARTS, help=f"some of these, joined by commas, or {BY_NAME}, which take hours"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="where comparisons are kept")
    parser.add_argument("--doc", action="store_true", help="write the tables into docs/quality.md (DOC=1)")
    given = parser.parse_args()
    malloc.keep_freed()
    now = made()  # before a page is written, which would make the commit dirty
    measures = {
        "served": served,
        "ood": ood,
        "int8": integers,
        "frozen": lambda: frozen(given.out),
        "one-class": lambda: one_class(given.out),
        "neu": lambda: neu(given.out),
        "backbone": lambda: backbones.backbone(given.out / "backbone"),
        "backbone-speed": lambda: backbones.speed(given.out / "backbone"),
        "thawed": lambda: backbones.thawed(given.out / "backbone"),
        "distilled": lambda: backbones.distilled(given.out / "backbone"),
        "literature": lambda: backbones.literature(given.out / "backbone"),
        "inspect": lambda: inspection.inspect(given.out / "inspect"),
        "inspect-small": lambda: inspection.inspect_small(given.out / "inspect"),
        "sets": lambda: trust.sets(given.out / "trust"),
        "watch": lambda: trust.watch(given.out / "trust"),
        "inspect-own": lambda: inspection.inspect_own(given.out / "inspect-own"),
        "similar": lambda: feedback.similar(newest()),
        "feedback": lambda: feedback.feedback(given.out / "feedback"),
        "auto": lambda: auto.auto(given.out / "auto"),
    }
    asked = given.only.split(",")
    for name in asked:
        if name not in measures:
            parser.error(f"--only: no part {name!r}; there are {', '.join(measures)}")
    pages = page.blocks(PAGE)
    for name in asked:
        start = time.monotonic()
        try:
            reached = []
            for bar in measures[name]():
                print(bar.line(), flush=True)
                reached.append(bar)
            if given.doc and name in pages:
                page.write(PAGE, name, table(reached, digits=4), [now])
            elif given.doc:
                print(f"        {name} has no table in {PAGE.name}: nothing is written there")
        except (Skipped, GraftError) as skipped:
            print(f"        {name}: skipped: {skipped}")
        print(f"        ({name}: {time.monotonic() - start:,.0f} s)", flush=True)


if __name__ == "__main__":
    main()
